"""The purge of a store and of this machine's files, and the proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from service.access.principal import DEFAULT_TENANT
from service.erasure.search import Needle, Search, search_folders
from service.erasure.snapshots import remove_unused, wait_for_snapshots
from service.store.purge import PurgedLog, canary_in_store, purge_store


@dataclass(frozen=True, slots=True)
class PurgeReport:
    """`late`: folders of snapshots that their processes have not made anew. `looked_for`: how many ids and texts.
    `store_searched`: each folder that was named as the Redis server's has files that it wrote at this purge, in which
    texts can be found."""

    logs: tuple[PurgedLog, ...]
    late: tuple[str, ...]
    looked_for: int
    store_searched: bool
    search: Search

    @property
    def proved(self) -> bool:
        """Whether something was looked for everywhere, and nothing of it is left."""
        return bool(self.looked_for) and self.done

    @property
    def done(self) -> bool:
        """Whether nothing is known to be left, nor left unsearched."""
        unsearched = self.looked_for and not self.store_searched
        return not (unsearched or self.late or self.search.findings)


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
    """Purge the store, make its snapshots below `data_dir` anew, and search all files. Raises PurgeError, and OSError
    where a file or folder cannot be read.

    `server_folders`: those of the Redis server, as far as they are on this machine. `ids`: those of removed notes of
    `tenant`. `texts`: name and text.
    """
    needles = [*map(Needle.of_id, ids), *(Needle.of_text(name, text) for name, text in texts)]
    with canary_in_store(url) as canary:
        logs = purge_store(url, ids, tenant)
        remove_unused(data_dir, logs)
        late = wait_for_snapshots(data_dir, logs, wait_seconds)
        search = search_folders([data_dir, *server_folders], needles)
        # After that search: the server may write a compressed file at any time behind the purge.
        searched = bool(server_folders) and all(_has_text(folder, canary) for folder in server_folders)
    return PurgeReport(tuple(logs), tuple(map(str, late)), len(needles), searched, search)


def _has_text(folder: Path, text: str) -> bool:
    return bool(search_folders([folder], [Needle("canary", (text.encode(),))]).findings)
