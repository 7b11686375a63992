"""Purge of a store and of this machine's files, and the search that proves it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.access.principal import DEFAULT_TENANT
from service.erasure.search import Needle, Search, files_below, search_folders
from service.erasure.snapshot_renewal import wait_for_snapshots
from service.store.purge import PurgedLog, canary_in_store, purge_store

DATA_SET_MAGIC = b"REDIS", b"VALKEY"
"""First bytes of a file in the form of a dump."""


@dataclass(frozen=True, slots=True)
class PurgeReport:
    """Result of a purge. `late`: folders of snapshots that their processes have not renewed. `looked_for`: number of
    ids and texts that were searched for. `store_searched`: whether each folder that was given as the Redis server's
    has a file of this purge in which texts can be found. `old_or_compressed`: dumps and bases of append-only files in
    these folders that the server did not write at this purge, or that it compressed."""

    logs: tuple[PurgedLog, ...]
    late: tuple[str, ...]
    looked_for: int
    store_searched: bool
    old_or_compressed: tuple[str, ...]
    search: Search

    @property
    def proved(self) -> bool:
        """Whether something was searched for everywhere, and nothing of it is left."""
        return bool(self.looked_for) and self.done

    @property
    def done(self) -> bool:
        """Whether nothing is known to be left, and nothing was left unsearched."""
        unsearched = self.looked_for and (self.old_or_compressed or not self.store_searched)
        return not (unsearched or self.late or self.search.findings or self.search.unread)


def purge(
    url: str,
    data_dir: Path,
    server_folders: Sequence[Path],
    *,
    ids: Sequence[str],
    texts: Sequence[tuple[str, str]],
    wait_seconds: float,
    tenant: str = DEFAULT_TENANT,
) -> PurgeReport:
    """Purge the store, wait until the snapshots below `data_dir` are renewed, and search all files. Raises PurgeError.

    `server_folders`: folders of the Redis server that are on this machine. `ids`: those of removed notes of `tenant`.
    `texts`: pairs of a name and a text.
    """
    needles = [*map(Needle.of_id, ids), *(Needle.of_text(name, text) for name, text in texts)]
    with canary_in_store(url) as canary:
        logs = purge_store(url, ids, tenant)
        purged = {path: _version(path) for path in map(str, files_below(server_folders)[0]) if _is_data_set(path)}
        late = wait_for_snapshots(data_dir, logs, wait_seconds)
        search = search_folders([data_dir, *server_folders], needles)
        # After `search`, so that a file that the server compressed in between does not count as searched.
        with_canary = {folder: _files_with(canary, folder) for folder in server_folders}
    others = [
        path
        for folder, files in with_canary.items()
        for path in map(str, files_below([folder])[0])
        if path not in files and _is_data_set(path) and not (files and _is_written_since(path, purged))
    ]
    searched = bool(with_canary) and all(with_canary.values())
    return PurgeReport(tuple(logs), tuple(map(str, late)), len(needles), searched, tuple(dict.fromkeys(others)), search)


def _files_with(text: str, folder: Path) -> set[str]:
    findings = search_folders([folder], [Needle("canary", (text.encode(),))]).findings
    return {finding.file for finding in findings}


def _is_written_since(path: str, versions: Mapping[str, tuple[int, int, int] | None]) -> bool:
    """Return whether a file is no longer the one of `versions`: the server has written, replaced or removed it."""
    version = _version(path)
    return version is None or version != versions.get(path)


def _version(path: str) -> tuple[int, int, int] | None:
    """Return what differs once the server has replaced a file; None for a file that does not exist."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _is_data_set(path: str) -> bool:
    """Return whether a file has the form of a server's whole data: a dump, the base of an append-only file, or an
    unfinished one of these. It may be compressed. False if the file cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(max(DATA_SET_MAGIC, key=len))).startswith(DATA_SET_MAGIC)
    except OSError:
        return False
