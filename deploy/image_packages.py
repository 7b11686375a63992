"""Prints the packages of a lock that the image installs, with their hashes: python deploy/image_packages.py LOCK

A lock is for every system and Python version, and has markers where a package is for some of them. The image has Linux
and the Python version of the Dockerfile.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

DOCKERFILE = Path(__file__).parents[1] / "Dockerfile"
BASE = re.compile(r"^FROM python:((\d+\.\d+)\.\d+)-", re.MULTILINE)
"""Line of the Dockerfile with the full and the short version of Python."""
ENTRY = re.compile(r"^(?=\S)", re.MULTILINE)
"""Begin of a package's lines: the requirement, and one line for each hash."""


def image_environment() -> dict[str, str]:
    """Return the values of environment markers (PEP 508) in the image, whose architectures need the same packages."""
    version = BASE.search(DOCKERFILE.read_text("utf-8"))
    assert version, "the Dockerfile names no version of Python"
    return {
        "implementation_name": "cpython",
        "implementation_version": version[1],
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": version[1],
        "python_version": version[2],
        "sys_platform": "linux",
    }


def image_packages(lock: str) -> Iterator[str]:
    """Yield the lines of each package of a lock that the image installs, without the marker."""
    environment = image_environment()
    for entry in ENTRY.split(lock):
        first, backslash, hashes = entry.partition("\\")
        if not backslash:  # a comment
            continue
        requirement = Requirement(first.strip())
        if requirement.marker is None or requirement.marker.evaluate(environment):
            yield f"{requirement.name}{requirement.specifier} \\{hashes}"


def main() -> None:
    """Run the command of the module's docstring."""
    (lock,) = sys.argv[1:]
    sys.stdout.writelines(image_packages(Path(lock).read_text("utf-8")))


if __name__ == "__main__":
    main()
