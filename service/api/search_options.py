"""The options of a search, checked, with the defaults of their scenario."""

from __future__ import annotations

from typing import cast

from fastapi import Request

from service.api.bounds import check_search_options
from service.api.included import check_note_access
from service.api.scenarios import Scenarios, with_scenario
from service.api.schemas.search import SearchDefaults
from service.api.schemas.similar import RankingOptions
from service.container import ReadService


def read_options(
    given: RankingOptions, request: Request, service: ReadService, pointer: str
) -> RankingOptions | SearchDefaults:
    """Return the options of a search with the defaults of their scenario. Raises Forbidden, and InvalidInput at
    `pointer`."""
    check_note_access(given, request)
    options = with_scenario(given, _scenarios_of(request), pointer)
    check_search_options(options, pointer, service.settings)
    return options


def _scenarios_of(request: Request) -> Scenarios:
    return cast(Scenarios, request.app.state.scenarios)
