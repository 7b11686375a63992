"""Access to routes: each declares who may call it."""

from __future__ import annotations

import pytest
from fastapi import APIRouter

from service.access.principal import TENANT
from service.api.strict_route import StrictRoute


async def handler() -> None:
    """Declare no scope."""


def test_route_without_a_scope_is_refused() -> None:
    router = APIRouter(route_class=StrictRoute)
    with pytest.raises(TypeError, match="handler declares no scope"):
        router.get("/open")(handler)


@pytest.mark.parametrize(
    ("name", "valid"),
    [("default", True), ("7-films", True), ("a" * 40, True), ("a" * 41, False), ("", False), ("-a", False)]
    + [(name, False) for name in ("Films", "a.b", "a:b", "a\n", "é", "{a}", "..")],
)
def test_tenant_name_is_of_lower_case_letters(name: str, valid: bool) -> None:
    assert (TENANT.fullmatch(name) is not None) is valid
