"""Error messages for environment variables NOTELLM_* that have a wrong value or are no setting."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from service.setting_fields import PREFIX
from service.settings import Settings

OTHER_VARIABLES = frozenset(
    {
        *("NOTELLM_URL", "NOTELLM_API_KEY"),  # of the commands that talk to a running service
        *("NOTELLM_DATA", "NOTELLM_PAIRS", "NOTELLM_START"),  # of the training recipes and the tests
        *("NOTELLM_CHAOS_ROUNDS", "NOTELLM_CHAOS_SEED", "NOTELLM_FUZZ_REQUESTS", "NOTELLM_FUZZ_SEED"),
        "NOTELLM_RACE_ROUNDS",
        *("NOTELLM_TEST_CACHE", "NOTELLM_TEST_DEVICE"),
    }
)
"""Variables that begin with PREFIX and are no settings."""
MAX_SHOWN = 100
"""Bound on the characters of a wrong value that an error repeats."""


def describe_errors(error: ValidationError) -> list[str]:
    """Return one line for each wrong setting: its variable, its value unless that is secret, and what is allowed."""
    schema = Settings.model_json_schema()["properties"]
    lines = []
    for failure in error.errors():
        name = str(failure["loc"][0])
        variable = PREFIX + name.upper()
        # Errors of pydantic have a link to its documentation; others have the message of a validator of Settings.
        if "url" in failure and (allowed := _allowed_values(schema[name])):
            lines.append(f"{variable} is {str(failure['input'])[:MAX_SHOWN]!r}; it must be {allowed}")
        else:
            lines.append(f"{variable} {failure['msg']}")
    return lines


def describe_unknown(variables: Iterable[str]) -> list[str]:
    """Return one line for each variable that is named like a setting but is none, with the most similar setting."""
    known = [name.upper() for name in Settings.model_fields]
    lines = []
    for variable in variables:
        prefix, name = variable[: len(PREFIX)].upper(), variable[len(PREFIX) :].upper()  # settings have any case
        if prefix == PREFIX and prefix + name not in OTHER_VARIABLES and name not in known:
            nearest = get_close_matches(name, known, 1)
            hint = f"did you mean {PREFIX}{nearest[0]}?" if nearest else "see docs/configuration.md for all settings"
            lines.append(f"{variable} is not a setting; {hint}")
    return lines


def _allowed_values(schema: dict[str, Any]) -> str:
    """Describe the values of a setting that is a choice or a number; "" for others, which may be secret."""
    schema = next((choice for choice in schema.get("anyOf", ()) if choice.get("type") != "null"), schema)
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if schema.get("type") == "boolean":
        return "1 or 0"
    kind = {"integer": "a whole number", "number": "a number"}.get(schema.get("type", ""))
    if kind is None:
        return ""
    if "exclusiveMinimum" in schema:
        return f"{kind} above {schema['exclusiveMinimum']}"
    if "maximum" in schema:
        return f"{kind} from {schema['minimum']} to {schema['maximum']}"
    return f"{kind} of at least {schema['minimum']}"
