"""The embedded server, its owner and its adopters, in real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog

from service.lifecycle import Lifecycle
from service.settings import Settings
from service.store import embedded_redis
from service.store.embedded_redis import EmbeddedRedis, EmbeddedRedisError, launch_command, server_program
from service.telemetry import Telemetry
from service.wiring import _open_embedded
from tests.service.conftest import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

COMMANDS = 10_000
"""Commands in the file of a server that loads slowly; while loading, it answers clients after each 1024 of them."""
SLOW_LOAD = ("--key-load-delay", "200")
"""Options of a server that waits 200 microseconds after each command that it loads."""

# Starts the server of a folder, prints its pid (or None), and stops it after a line of input. Prints SIGINT, too.
PROCESS = """
import os
import signal
import sys
from pathlib import Path
from service.store.embedded_redis import EmbeddedRedis

signal.signal(signal.SIGINT, lambda *_: os.write(1, b"interrupted\\n"))  # wherever it comes, also while printing
server = EmbeddedRedis(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
sys.stdin.readline()
server.stop()
"""


class OtherProcess:
    """Another process that uses the server of `folder`, in its own process group."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def server_pid(self) -> int | None:
        """Return the pid of the process's own server, from the first line that it prints; None if it owns none."""
        said = self.line()
        return None if said == "None" else int(said)

    def end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait()

    def stop(self) -> None:
        self.process.communicate("stop\n")


@contextlib.contextmanager
def other_process(folder: Path) -> Iterator[OtherProcess]:
    other = OtherProcess(folder)
    try:
        yield other
    finally:
        if other.process.poll() is None:
            other.stop()
        other.process.communicate()


@contextlib.contextmanager
def started(folder: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextlib.asynccontextmanager
async def kept_alive(server: EmbeddedRedis) -> AsyncIterator[None]:
    keeper = asyncio.create_task(server.keep_alive())
    try:
        yield
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


def alive(pid: int) -> bool:
    """Return whether the process runs; a zombie does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def answers(server: EmbeddedRedis) -> bool:
    with redis.Redis.from_url(server.url) as client, contextlib.suppress(redis.RedisError):
        return bool(client.ping())
    return False


def is_refused(server: EmbeddedRedis) -> bool:
    """Return whether the server refuses a write."""
    try:
        write(server, "another", "value")
    except redis.OutOfMemoryError:
        return True
    return False


def write(server: EmbeddedRedis, key: str, value: str) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.set(key, value)


def read(server: EmbeddedRedis, key: str) -> str | None:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        value: str | None = client.get(key)
        return value


def test_a_second_process_uses_the_server_of_the_first(embedded: EmbeddedRedis) -> None:
    write(embedded, "from", "the first")
    with other_process(embedded.socket.parent) as other:
        assert other.server_pid() is None
        other.stop()
    assert read(embedded, "from") == "the first"


def test_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedRedisError, match=r"NOTELLM_DATA_DIR: .*file/data cannot be written to"):
        EmbeddedRedis(tmp_path / "file" / "data")


async def test_who_joins_a_running_store_is_told_so(embedded: EmbeddedRedis, short_folder: Path) -> None:
    lines: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        settings = Settings.model_validate({"data_dir": short_folder / "data"})
        assert await _open_embedded(settings, stack, Telemetry(), Lifecycle(lines.append)) == embedded.url
    assert [line for line in lines if "another process runs" in line]


def test_of_processes_that_start_together_one_owns_the_server(short_folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(other_process(short_folder)) for _ in range(3)]
        owned = [pid for other in others if (pid := other.server_pid()) is not None]
        assert len(owned) == 1
        assert alive(owned[0])


async def test_the_server_dies_with_its_owner(short_folder: Path) -> None:
    with other_process(short_folder) as owner:
        pid = owner.server_pid()
        assert pid is not None
        assert alive(pid)
        owner.end(signal.SIGKILL)
        await eventually(lambda: not alive(pid))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None])
async def test_server_whose_owner_ends_is_restarted_by_another_process(
    short_folder: Path, how: signal.Signals | None
) -> None:
    with other_process(short_folder) as owner:
        assert owner.server_pid() is not None
        with started(short_folder) as adopter:
            assert adopter.pid is None
            write(adopter, "key", "kept")
            async with kept_alive(adopter):
                owner.end(how) if how else owner.stop()
                await eventually(lambda: adopter.pid is not None and answers(adopter))
            assert read(adopter, "key") == "kept"


async def test_the_owner_starts_a_killed_server_again_with_its_data(embedded: EmbeddedRedis) -> None:
    write(embedded, "key", "kept")
    async with kept_alive(embedded):
        killed = embedded.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        await eventually(lambda: embedded.pid != killed and answers(embedded))
    assert read(embedded, "key") == "kept"


def test_damaged_file_is_cut_by_the_documented_command(short_folder: Path, tmp_path: Path) -> None:
    with started(short_folder) as server:
        for number in range(100):
            write(server, f"key{number}", "kept")
    (file,) = (short_folder / "appendonlydir").glob("*.incr.aof")
    content = bytearray(file.read_bytes())
    content[content.index(b"\r\n*", len(content) // 2) + 2] = ord("X")
    file.write_bytes(content)
    with pytest.raises(EmbeddedRedisError), started(short_folder):
        pass
    checker = tmp_path / "valkey-check-aof"
    checker.symlink_to(server_program())
    subprocess.run([checker, "--fix", file], input=b"y\n", check=True)
    with started(short_folder) as server:
        assert read(server, "key1") == "kept"
        assert read(server, "key99") is None


async def test_server_that_hangs_is_told_once_and_not_called_gone(
    embedded: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks, connects = list[Path](), embedded_redis._connects
    monkeypatch.setattr(embedded_redis, "_connects", lambda socket: bool(checks.append(socket)))
    pid = embedded.pid
    with structlog.testing.capture_logs() as lines:
        async with kept_alive(embedded):
            await eventually(lambda: len(checks) > 3)
            monkeypatch.setattr(embedded_redis, "_connects", connects)
            await eventually(lambda: not embedded._hangs)
    assert [line["event"] for line in lines if line.get("pid") == pid] == ["embedded_redis_hangs"]
    assert "embedded_redis_gone" not in [line["event"] for line in lines]
    assert embedded.pid == pid


async def test_server_takes_no_writes_while_its_disk_is_nearly_full(
    embedded: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(embedded, "key", "kept")
    async with kept_alive(embedded):
        monkeypatch.setattr(embedded_redis, "DISK_RESERVE_BYTES", 2**62)
        await eventually(lambda: is_refused(embedded))
        killed = embedded.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        await eventually(lambda: embedded.pid != killed and answers(embedded))
        assert is_refused(embedded)
        assert read(embedded, "key") == "kept"
        monkeypatch.setattr(embedded_redis, "DISK_RESERVE_BYTES", 0)
        await eventually(lambda: not is_refused(embedded))


@pytest.mark.parametrize("error", [OSError("no file descriptor is left"), RuntimeError("cannot start new thread")])
async def test_server_that_died_is_started_again_behind_a_failed_check(
    embedded: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    looks: list[Path] = []
    usage = shutil.disk_usage

    def fail_once(folder: Path) -> Any:
        looks.append(folder)
        if len(looks) == 1:
            raise error
        return usage(folder)

    monkeypatch.setattr(shutil, "disk_usage", fail_once)
    async with kept_alive(embedded):
        await eventually(lambda: len(looks) > 1)
        killed = embedded.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        await eventually(lambda: embedded.pid != killed and answers(embedded))


def test_ctrl_c_reaches_the_owner_and_not_the_server(short_folder: Path) -> None:
    with other_process(short_folder) as owner:
        pid = owner.server_pid()
        assert pid is not None
        assert os.getpgid(pid) != os.getpgid(owner.process.pid)
        os.killpg(owner.process.pid, signal.SIGINT)
        assert owner.line() == "interrupted"
        with started(short_folder) as adopter:
            write(adopter, "key", "the server is the same")
            assert adopter.pid is None
        assert alive(pid)


async def test_stop_ends_the_server_and_frees_the_folder(short_folder: Path) -> None:
    with started(short_folder) as server:
        pid = server.pid
        assert pid is not None
    assert server.pid is None
    assert not alive(pid)
    assert not answers(server)
    with other_process(short_folder) as next_owner:
        assert next_owner.server_pid() is not None


def test_an_adopter_that_stops_leaves_the_server_to_its_owner(embedded: EmbeddedRedis) -> None:
    with started(embedded.socket.parent) as adopter:
        assert adopter.pid is None
    assert answers(embedded)


def test_a_later_start_has_the_data_of_an_earlier_one(short_folder: Path) -> None:
    with started(short_folder) as server:
        write(server, "key", "kept")
    with started(short_folder) as server:
        assert read(server, "key") == "kept"


def test_a_folder_with_a_very_long_path_works(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120) / ("夜" * 60)
    with started(folder) as server:
        write(server, "key", "kept")
        with other_process(folder) as other:
            assert other.server_pid() is None
        assert (folder / "appendonlydir").is_dir()


def test_two_long_folders_have_two_servers(tmp_path: Path) -> None:
    with started(tmp_path / ("x" * 120)) as one, started(tmp_path / ("y" * 120)) as two:
        write(one, "key", "one")
        assert read(two, "key") is None


def test_nobody_else_can_reach_folder_or_socket(embedded: EmbeddedRedis) -> None:
    assert embedded.socket.stat().st_mode & 0o077 == 0
    assert embedded.socket.parent.stat().st_mode & 0o077 == 0
    files = list((embedded.socket.parent / "appendonlydir").iterdir())
    assert files
    assert {file.stat().st_mode & 0o077 for file in files} == {0}
    with redis.Redis.from_url(embedded.url, decode_responses=True) as client:
        assert client.config_get("port") == {"port": "0"}


def test_it_is_on_disk_at_every_write_and_never_evicts(embedded: EmbeddedRedis) -> None:
    with redis.Redis.from_url(embedded.url, decode_responses=True) as client:
        settings = {name: client.config_get(name)[name] for name in ("appendonly", "appendfsync", "maxmemory-policy")}
    assert settings == {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}


def test_a_server_that_cannot_run_is_an_error_that_names_its_log(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        embedded_redis, "START_SECONDS", 3.0
    )  # long enough for the server to log the reason on a busy machine
    (short_folder / "appendonlydir").mkdir()
    (short_folder / "appendonlydir" / "appendonly.aof.manifest").write_text("not a manifest\n")
    with pytest.raises(EmbeddedRedisError) as error, started(short_folder):
        pass
    named = Path(str(error.value).rpartition("see ")[2])
    assert "manifest" in named.read_text()


def test_server_that_loads_its_data_has_as_long_as_it_takes(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(short_folder) as server, redis.Redis.from_url(server.url) as client:
        pipeline = client.pipeline(transaction=False)
        for number in range(COMMANDS):
            pipeline.set("key", number)
        pipeline.execute()
    monkeypatch.setattr(embedded_redis, "launch_command", lambda *paths: [*launch_command(*paths), *SLOW_LOAD])
    owner = EmbeddedRedis(short_folder)
    try:
        for pause in owner._attempts():
            if owner.loaded_percent:
                break
            time.sleep(pause)
        monkeypatch.setattr(embedded_redis, "START_SECONDS", 0.0)  # a server that does not answer is given up at once
        with started(short_folder) as adopter:
            assert read(adopter, "key") == str(COMMANDS - 1)
    finally:
        owner.stop()
