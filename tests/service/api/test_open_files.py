"""The bound on connections follows from the system's bound on open files."""

from __future__ import annotations

import resource

import pytest

from service.api.connection_bounds import FILES_OF_TENANT, MAX_CONNECTIONS, SPARE_FILES
from service.api.http_server import allow_open_files
from service.api.protocol import BoundedProtocol

TENANTS = 10
SPARE = SPARE_FILES + TENANTS * FILES_OF_TENANT


def room(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, readers: int, *, is_reader_process: bool
) -> tuple[int, int]:
    """Return the bound on connections, and that on open files, of a process whose system allows `soft` to `hard`."""
    limits = [soft]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[-1], hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, bounds: limits.append(bounds[0]))
    monkeypatch.setattr(BoundedProtocol, "max_connections", MAX_CONNECTIONS)
    monkeypatch.setattr(BoundedProtocol, "needed_files", 0)
    allow_open_files(TENANTS, readers, is_reader_process=is_reader_process)
    return BoundedProtocol.max_connections, limits[-1]


@pytest.mark.parametrize("readers", [0, 1, 4])
@pytest.mark.parametrize("hard", [2**20, resource.RLIM_INFINITY])
def test_high_limit_allows_all_connections_and_is_used_as_far_as_needed(
    monkeypatch: pytest.MonkeyPatch, hard: int, readers: int
) -> None:
    for is_reader_process in (False, True):
        files = MAX_CONNECTIONS * (1 + readers) + SPARE
        assert room(monkeypatch, 1024, hard, readers, is_reader_process=is_reader_process) == (MAX_CONNECTIONS, files)


@pytest.mark.parametrize("readers", [1, 2, 4])
def test_requests_that_reader_processes_forward_leave_spare_files(
    monkeypatch: pytest.MonkeyPatch, readers: int
) -> None:
    hard = 4096
    of_reader_process, files = room(monkeypatch, 1024, hard, readers, is_reader_process=True)
    assert files == hard
    assert 2 * of_reader_process + SPARE <= hard, "a reader process needs two files for each"
    assert readers * of_reader_process + SPARE <= hard, "the process with the model needs one for each"
    assert room(monkeypatch, 1024, hard, readers, is_reader_process=False)[0] == hard - SPARE


def test_limit_below_the_spare_files_leaves_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    assert room(monkeypatch, 256, 256, 0, is_reader_process=False) == (1, 256)
