"""Budget: how much memory the caches of one kind may take, those of all tenants of a process together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Budget:
    """Bytes that the caches may take, and those that they take: `used`. Each cache drops entries of its own while the
    budget is spent."""

    max_bytes: int
    used: int = 0
