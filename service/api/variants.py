"""Variants of a scenario, for experiments: each has a share of the users, and a user always gets the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from service.api.schemas.search import SearchDefaults

HASH_BYTES = 8
"""Bytes of the hash that places a user: enough for shares as small as one in a billion."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant of a scenario. `share`: share of the users that get it, from 0 to 1. `defaults`: those of the scenario,
    overridden by the variant's own fields."""

    name: str
    share: float
    defaults: SearchDefaults


def choose_variant(scenario: str, variants: Sequence[Variant], user: str) -> Variant | None:
    """Return the variant that a user gets; None for the scenario itself.

    A user's place between 0 and 1 is a hash of scenario and user, always the same in every process; the variants take
    their shares of that range in order, and the scenario itself has the rest. So two experiments split the users
    differently, and a variant that is added after the others takes no user from them.
    """
    digest = hashlib.blake2b(f"{scenario}\0{user}".encode(), digest_size=HASH_BYTES).digest()
    place = int.from_bytes(digest) / 2 ** (8 * HASH_BYTES)
    for variant in variants:
        place -= variant.share
        if place < 0:
            return variant
    return None
