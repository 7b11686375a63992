"""Whether a Redis server keeps acknowledged writes, and whether connection.py must wait for its disk after each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from redis.exceptions import BusyLoadingError, ReadOnlyError, ResponseError

from service.records import Durability

WAITAOF_VERSION = (7, 2)
"""First version of Redis that has the command WAITAOF."""
PREMATURE_VERSION = (7, 4)
"""Version of Redis whose WAITAOF answers before the fsync where appendfsync is everysec. A late patch release fixes it,
but no release of this version is trusted. WAITAOF of Valkey answers too early as well."""

NO_FSYNC_ON_REWRITE = "no-appendfsync-on-rewrite"
"""Setting with which a server acknowledges writes without an fsync while a child process writes its file or dump. With
everysec, WAITAOF waits until the child process has ended."""


@dataclass(frozen=True, slots=True)
class WritePolicy:
    """Persistence of a server's writes. `waits`: each write is followed by WAITAOF, since the server fsyncs it only
    later."""

    durability: Durability
    waits: bool = False


async def probe_write_policy(redis: Any) -> WritePolicy:
    """Ask the server how it persists, how full its memory is, and whether it evicts. Raises
    redis.exceptions.RedisError, also where it still loads its file (until then it reports that it writes no file), and
    where it is a replica, whose notes may be behind those of its primary.

    A server that forbids CONFIG is asked through INFO alone, which does not say when it fsyncs.
    """
    server = await redis.info()
    if server.get("loading"):
        raise BusyLoadingError("it is loading its data")
    if server.get("role") == "slave":  # after a failover that left connections to the old primary
        raise ReadOnlyError("it is a read only replica")
    try:
        settings = await redis.config_get("*appendfsync*")  # a pattern: before version 7 CONFIG GET takes one argument
    except ResponseError:
        settings = {}
    policy = _persistence(server, settings)
    durability = replace(policy.durability, memory_filled=_memory_filled(server))
    eviction = server.get("maxmemory_policy", "noeviction")
    if server.get("maxmemory") and eviction != "noeviction":
        detail = f"maxmemory-policy {eviction} evicts notes when memory is full: set it to noeviction"
        durability = replace(durability, durable=False, detail=f"{durability.detail}; {detail}")
    return replace(policy, durability=durability)


def _memory_filled(server: Mapping[str, Any]) -> float | None:
    """Return the share of a server's maxmemory that is in use, at most 1, as the server counts it when it refuses
    writes: without buffers of its file and of replicas. None where it has no maxmemory."""
    bound = server.get("maxmemory")
    if not bound:
        return None
    used = server["used_memory"] - server.get("mem_not_counted_for_evict", 0)
    return float(min(1.0, max(0.0, used / bound)))


def _persistence(server: Mapping[str, Any], settings: Mapping[str, str]) -> WritePolicy:
    """Return how a server persists acknowledged writes, given its INFO and its settings."""
    appendfsync = settings.get("appendfsync", "unknown")
    version = tuple(int(number) for number in str(server.get("redis_version", "0.0")).split(".")[:2])
    if not server.get("aof_enabled"):
        return WritePolicy(Durability(False, "appendonly is off: acknowledged notes are lost when Redis dies"))
    if appendfsync == "always":
        if settings.get(NO_FSYNC_ON_REWRITE) == "yes":
            detail = f"{NO_FSYNC_ON_REWRITE} suspends appendfsync always while the server writes a file: set it to no"
            return WritePolicy(Durability(False, detail))
        return WritePolicy(Durability(True, "appendonly with appendfsync always"))
    if appendfsync == "everysec" and version >= WAITAOF_VERSION:  # with "no", WAITAOF would wait for ever
        if "valkey_version" in server or version == PREMATURE_VERSION:
            detail = "appendonly with appendfsync everysec, and WAITAOF of this server answers before the fsync"
            return WritePolicy(Durability(False, f"{detail}: use appendfsync always"))
        detail = f"appendonly with appendfsync {appendfsync}, each write waits with WAITAOF"
        return WritePolicy(Durability(True, detail), waits=True)
    detail = f"appendonly with appendfsync {appendfsync}: the last writes can be lost"
    return WritePolicy(Durability(False, detail))
