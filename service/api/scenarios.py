"""Scenarios: names that a deployment binds to defaults of a search's fields, in the file of NOTELLM_SCENARIOS."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from service.api.bounds import check_search_options
from service.api.problems import invalid_note
from service.api.schemas.common import Name
from service.api.schemas.search import SearchDefaults
from service.api.schemas.similar import RankingOptions
from service.errors import FieldError, InvalidInput
from service.settings import Settings

Scenarios = Mapping[str, SearchDefaults]
"""Defaults by the name of the scenario; those that it binds are in `model_fields_set`."""
NOT_BOUND = ("scenario", "cursor", "min_log_position")
"""Fields that belong to one request alone."""
NAME: TypeAdapter[str] = TypeAdapter(Name)
Options = TypeVar("Options", bound=RankingOptions)


class ScenariosUnusable(ValueError):
    """The file of NOTELLM_SCENARIOS cannot be used; the message says why, in one line."""


def read_scenarios(settings: Settings) -> dict[str, SearchDefaults]:
    """Read and check the scenarios; none where there is no file. Raises ScenariosUnusable."""
    path = settings.scenarios
    if path is None:
        return {}
    try:
        content = _parse(path)
        return {_checked_name(name): _checked(name, fields, settings) for name, fields in content.items()}
    except ValueError as error:
        raise ScenariosUnusable(f"NOTELLM_SCENARIOS: {path}: {error}") from error
    except OSError as error:
        raise ScenariosUnusable(f"NOTELLM_SCENARIOS: {path}: {error.strerror or error}") from error


def _parse(path: Path) -> dict[str, Any]:
    text = path.read_text("utf-8")
    content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    if not isinstance(content, dict):
        raise ValueError("it must be an object of scenarios by their names")
    return content


def _checked_name(name: str) -> str:
    try:
        return NAME.validate_python(name)
    except ValidationError as error:
        raise ValueError(f"the name {name[:40]!r}: {error.errors()[0]['msg']}") from error


def _checked(name: str, fields: Any, settings: Settings) -> SearchDefaults:
    """Validate one scenario. Raises ValueError, which names the scenario and the field."""
    try:
        if isinstance(fields, dict) and (unbound := [field for field in NOT_BOUND if field in fields]):
            raise InvalidInput([FieldError(f"/{unbound[0]}", "belongs to one request, not to a scenario")])
        try:
            defaults = SearchDefaults.model_validate(fields)
        except ValidationError as error:
            raise invalid_note(error) from error
        check_search_options(defaults, "", settings)
    except InvalidInput as error:
        first = error.errors[0]
        raise ValueError(f"scenario {name!r}: {first.pointer or '/'}: {first.detail}") from error
    return defaults


def with_scenario(options: Options, scenarios: Scenarios, pointer: str = "") -> Options | SearchDefaults:
    """Return the options with the defaults that their scenario binds: a field that the caller gave wins. Raises
    InvalidInput at `pointer`."""
    if options.scenario is None:
        return options
    defaults = scenarios.get(options.scenario)
    if defaults is None:
        detail = f"known scenarios are {sorted(scenarios)} (NOTELLM_SCENARIOS)"
        raise InvalidInput([FieldError(f"{pointer}/scenario", detail)])
    bound = {name: getattr(defaults, name) for name in defaults.model_fields_set}
    given = {name: getattr(options, name) for name in options.model_fields_set}
    merged = type(options) if isinstance(options, SearchDefaults) else SearchDefaults
    return merged.model_construct(**(bound | given))
