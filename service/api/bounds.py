"""Bounds on a request that the deployment's settings decide; GET /limits publishes them."""

from __future__ import annotations

from collections.abc import Sequence

from service.api.schemas.export import MAX_VECTOR_BYTES
from service.api.schemas.filter import FilterIn, FlatFilterIn, name_and_value
from service.api.schemas.problem import json_pointer
from service.api.schemas.search import SearchDefaults
from service.api.schemas.similar import RankingOptions
from service.errors import FieldError, InvalidInput, LimitExceeded
from service.settings import Settings


def check_note_size(size: int, settings: Settings) -> None:
    """Refuse a note whose JSON is longer than max_note_bytes. Raises LimitExceeded."""
    limit = settings.note_bytes
    if size > limit:
        raise LimitExceeded("max_note_bytes", limit)


def check_changed_size(size: int, earlier: int, settings: Settings) -> None:
    """Refuse a change that makes the JSON of a stored note longer, from `earlier` to `size`, and than max_note_bytes. A
    stored note may be longer: it was imported, or the bound was lowered. Raises LimitExceeded."""
    limit = settings.note_bytes
    if size > max(limit, earlier):
        raise LimitExceeded("max_note_bytes", limit, "The changed note, with what it keeps,")


def max_import_bytes(settings: Settings) -> int:
    """Return the bound on the JSON of an imported note: that of a note, plus room for a vector, and at most that of a
    body."""
    return min(settings.note_bytes + MAX_VECTOR_BYTES, settings.max_body_bytes)


def check_import_size(size: int, settings: Settings) -> None:
    """Refuse an imported note whose JSON is longer than max_import_bytes. Raises LimitExceeded."""
    limit = max_import_bytes(settings)
    if size > limit:
        raise LimitExceeded("max_import_bytes", limit)


def check_search_options(options: RankingOptions, pointer: str, settings: Settings) -> None:
    """Refuse a `k` over max_k, a `min_score` outside the range of the scores, and attributes that the index does not
    filter by. Raises InvalidInput at `pointer`."""
    limit = settings.max_k
    if options.k > limit:
        raise InvalidInput([FieldError(f"{pointer}/k", f"Input should be less than or equal to {limit}")])
    if options.min_score is not None and abs(options.min_score) > 1 and options.scores_like_cosines:
        problem = "must be from -1 to 1, like a cosine; only scores of sum_scores or with other sources may lie beyond"
        raise InvalidInput([FieldError(f"{pointer}/min_score", problem)])
    check_flat_filter(options, pointer, settings)
    if isinstance(options, SearchDefaults) and options.filter is not None:
        check_filter(options.filter, settings)


def check_flat_filter(conditions: FlatFilterIn, pointer: str, settings: Settings) -> None:
    """Refuse attributes that the index does not filter by. Raises InvalidInput at `pointer`."""
    known = settings.filter_attributes
    if unknown := sorted({name for name, _ in map(name_and_value, conditions.attribute)} - set(known)):
        raise InvalidInput([FieldError(f"{pointer}/attribute", _undeclared(known, ", ".join(unknown)))])


def _undeclared(known: Sequence[str], names: str) -> str:
    return f"filters may use {', '.join(known) or 'none'} (NOTELLM_FILTER_ATTRIBUTES), not {names}"


def check_filter(conditions: FilterIn, settings: Settings) -> None:
    """Refuse conditions on attributes that the index does not filter by. `conditions`: the field `filter` of a body.
    Raises InvalidInput."""
    known = settings.filter_attributes
    errors = [
        FieldError(
            json_pointer(location),
            _undeclared(known, name),
        )
        for name, location in conditions.attribute_places(("filter",))
        if name not in known
    ]
    if errors:
        raise InvalidInput(errors)
