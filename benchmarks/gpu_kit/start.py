"""Start of the GPU kit on the machine with the card: joins the parts, unpacks them once, and runs a command.

python start.py [run] [STEP ...] [--results FOLDER]
python start.py distil [--limit MINUTES] [--results FOLDER]

`pack` puts a copy of this file beside the parts. It needs only the standard library and no network. A packed wheel is
used if the machine lacks its package: a wheel is a zip file, which can be imported once it is unpacked.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
"""Names and SHA-256 of the parts, and the commit that was packed."""
CHECKOUT, CHECKPOINT, WHEELS, CORPUS = "checkout", "checkpoint", "wheels", "corpus"
"""Folders of the archive. It has a checkpoint only if that is not the shipped one, which the checkout contains, and a
corpus only if one was packed."""
RECIPE = "recipe.toml"
"""Recipe of the distillation, in the corpus."""
COMMANDS = ("run", "distil")
"""Commands of the kit on this machine; the first one is the default."""


def main(arguments: list[str]) -> None:
    """Unpack the parts beside this file, and replace this process by `python -m benchmarks.gpu_kit` in the checkout."""
    if sys.version_info < (3, 11):  # noqa: UP036  # this file alone may meet an older Python
        sys.exit(f"Python 3.11 or newer is needed, and this is {sys.version.split()[0]}")
    here = Path(__file__).resolve().parent
    unpacked = unpack(here, json.loads((here / MANIFEST).read_text("utf-8")))
    checkout, checkpoint, corpus = unpacked / CHECKOUT, unpacked / CHECKPOINT, unpacked / CORPUS
    name = arguments.pop(0) if arguments and arguments[0] in COMMANDS else COMMANDS[0]
    command = [sys.executable, "-m", "benchmarks.gpu_kit", name, "--cache", str(unpacked / "cache")]
    if name == "run":
        command += ["--results", str(here / "results")]
        command += ["--checkpoint", str(checkpoint)] if checkpoint.is_dir() else []
    else:
        command += ["--results", str(here / "distilled"), "--run", str(unpacked / "run")]
        command += ["--corpus", str(corpus), "--recipe", str(corpus / RECIPE)]
    path = os.pathsep.join(filter(None, [str(checkout), str(unpacked / "site"), os.environ.get("PYTHONPATH")]))
    os.chdir(checkout)
    os.execve(sys.executable, [*command, *arguments], {**os.environ, "PYTHONPATH": path})


def unpack(folder: Path, manifest: dict[str, Any]) -> Path:
    """Return the folder of the unpacked parts; check, join and unpack them if that was not yet done. Exits with a
    message that names missing or damaged parts."""
    digest = hashlib.sha256("".join(manifest["parts"].values()).encode()).hexdigest()
    target = folder / f"unpacked-{digest[:12]}"
    if target.is_dir():
        return target
    wrong = [name for name, digest in manifest["parts"].items() if digest_of(folder / name) != digest]
    if wrong:
        sys.exit(f"missing or damaged: {', '.join(wrong)}")
    joined, unfinished = folder / "joined.tar.gz", folder / "unfinished"
    with joined.open("wb") as whole:
        for name in manifest["parts"]:
            with (folder / name).open("rb") as part:
                shutil.copyfileobj(part, whole)
    shutil.rmtree(unfinished, ignore_errors=True)
    with tarfile.open(joined) as archive:
        archive.extractall(unfinished, filter="data")
    joined.unlink()
    for wheel in sorted((unfinished / WHEELS).glob("*.whl")):
        if not is_installed(wheel.name.split("-")[0]):
            zipfile.ZipFile(wheel).extractall(unfinished / "site")
    unfinished.rename(target)
    return target


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex; "" if it does not exist."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_installed(name: str) -> bool:
    """Whether this machine has a distribution of this name."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
