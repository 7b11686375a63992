"""Scenarios: named defaults for the fields of a search, which a deployment defines in the file of NOTELLM_SCENARIOS."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from service.api.bounds import check_search_options
from service.api.problems import invalid_value
from service.api.schemas.common import Label, check_names_differ
from service.api.schemas.filter import FilterIn
from service.api.schemas.search import SearchDefaults
from service.api.schemas.similar import RankingOptions
from service.api.variants import Variant, choose_variant
from service.errors import FieldError, InvalidInput
from service.settings import Settings

NOT_IN_SCENARIOS = ("scenario", "cursor", "min_log_position", "user")
"""Fields that belong to one request, so that no scenario may bind them."""
VARIANTS, SHARE = "variants", "share"
"""Field of a scenario that holds its variants, and field of a variant that holds its share."""
SHARE_TOLERANCE = 1e-9
"""Tolerance by which the sum of shares may exceed 1, since decimal fractions are rounded."""
NAME: TypeAdapter[str] = TypeAdapter(Label)
Options = TypeVar("Options", bound=RankingOptions)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario. It binds the fields in `model_fields_set` of `defaults`."""

    defaults: SearchDefaults
    variants: tuple[Variant, ...] = ()


Scenarios = Mapping[str, Scenario]
"""Scenarios by their names."""


class ScenariosUnusable(ValueError):
    """The file of NOTELLM_SCENARIOS cannot be used; the message says why, in one line."""


def read_scenarios(settings: Settings) -> dict[str, Scenario]:
    """Read and check the scenarios; {} if there is no file. Raises ScenariosUnusable."""
    path = settings.scenarios
    if path is None:
        return {}
    try:
        content = _parse(path)
        return {name: _scenario(name, fields, settings) for name, fields in _by_name(content).items()}
    except ValueError as error:
        raise ScenariosUnusable(f"NOTELLM_SCENARIOS: {path}: {error}") from error
    except OSError as error:
        raise ScenariosUnusable(f"NOTELLM_SCENARIOS: {path}: {error.strerror or error}") from error


def _parse(path: Path) -> dict[str, Any]:
    text = path.read_text("utf-8")
    content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    if not isinstance(content, dict):
        raise ValueError("the file must be an object of scenarios by name")
    return content


def _by_name(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `content` by its keys as requests and reports name them: without spaces around them. Raises ValueError for
    an invalid name, and for two keys with the same one."""
    return {_checked_name(key): fields for key, fields in check_names_differ(content).items()}


def _checked_name(name: str) -> str:
    try:
        return NAME.validate_python(name)
    except ValidationError as error:
        raise ValueError(f"the name {name[:40]!r}: {error.errors()[0]['msg']}") from error


def _scenario(name: str, fields: Any, settings: Settings) -> Scenario:
    """Validate one scenario with its variants. Raises ValueError, which names the scenario and the field."""
    if not isinstance(fields, dict):
        return Scenario(_checked(name, fields, settings))
    own = {key: value for key, value in fields.items() if key != VARIANTS}
    defaults, variants, listed = _checked(name, own, settings), [], fields.get(VARIANTS, {})
    if not isinstance(listed, dict):
        raise ValueError(f"scenario {name!r}: /variants: must be an object of variants by name")
    for variant, changes in _by_name(listed).items():
        place = f"{name}.{VARIANTS}.{variant}"
        share = changes.get(SHARE) if isinstance(changes, dict) else None
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
            raise ValueError(f"scenario {place!r}: /share: must be a number above 0, and at most 1")
        whole = own | {key: value for key, value in changes.items() if key != SHARE}
        variants.append(Variant(variant, share, _checked(place, whole, settings)))
    if sum(variant.share for variant in variants) > 1 + SHARE_TOLERANCE:
        raise ValueError(f"scenario {name!r}: /variants: the shares must not add up to more than 1")
    return Scenario(defaults, tuple(variants))


def _checked(name: str, fields: Any, settings: Settings) -> SearchDefaults:
    """Validate one scenario. Raises ValueError, which names the scenario and the field."""
    try:
        if isinstance(fields, dict) and (unbound := [field for field in NOT_IN_SCENARIOS if field in fields]):
            raise InvalidInput([FieldError(f"/{unbound[0]}", "belongs to a single request; a scenario cannot set it")])
        try:
            defaults = SearchDefaults.model_validate(fields)
        except ValidationError as error:
            raise invalid_value(error) from error
        check_search_options(defaults, "", settings)
    except InvalidInput as error:
        first = error.errors[0]
        raise ValueError(f"scenario {name!r}: {first.pointer or '/'}: {first.detail}") from error
    return defaults


def with_scenario(options: Options, scenarios: Scenarios, pointer: str = "") -> Options | SearchDefaults:
    """Return the options with the defaults of their scenario, or of the variant of it that their user gets; a field
    that the caller gave wins, except a filter without conditions: null, or nothing but `exclude`, such as the notes
    that a reader has seen. It leaves the scenario's conditions in force. Raises InvalidInput at `pointer`."""
    if options.scenario is None:
        if options.user is not None:
            raise InvalidInput([FieldError(f"{pointer}/user", "selects a variant of a scenario; requires `scenario`")])
        return options
    scenario = scenarios.get(options.scenario)
    if scenario is None:
        known = (
            f"must be one of {', '.join(sorted(scenarios))}"
            if scenarios
            else "must be omitted: no scenario is configured"
        )
        detail = f"{known} (NOTELLM_SCENARIOS)"
        raise InvalidInput([FieldError(f"{pointer}/scenario", detail)])
    variant = choose_variant(options.scenario, scenario.variants, options.user) if options.user is not None else None
    defaults = variant.defaults if variant else scenario.defaults
    bound = {name: getattr(defaults, name) for name in defaults.model_fields_set}
    given = {name: getattr(options, name) for name in options.model_fields_set}
    if (bound_filter := bound.get("filter")) and "filter" in given:
        own = given["filter"] or FilterIn()
        if own.clause() is None:
            given["filter"] = bound_filter.model_copy(update={"exclude": [*bound_filter.exclude, *own.exclude]})
    merged = type(options) if isinstance(options, SearchDefaults) else SearchDefaults
    chosen = merged.model_construct(**(bound | given))
    chosen.set_variant(variant.name if variant else None)
    return chosen
