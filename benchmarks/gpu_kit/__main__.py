"""Command line of the GPU kit."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import ROOT
from benchmarks.gpu_kit.options import Options
from benchmarks.gpu_kit.pack import PART_BYTES, pack
from benchmarks.gpu_kit.run import STEP_SECONDS, run
from benchmarks.harness.report import RESULTS


def parser() -> argparse.ArgumentParser:
    """Return the parser of both commands."""
    whole = argparse.ArgumentParser(prog="python -m benchmarks.gpu_kit")
    commands = whole.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help=f"write parts of {PART_BYTES >> 20} MiB or less, and start.py")
    packing.add_argument("out", type=Path, help="empty or new folder")
    packing.add_argument("--checkpoint", type=Path, help="measure this checkpoint instead of the shipped one")
    packing.add_argument("--wheels", type=Path, help="folder of wheels for the other machine, which travel too")
    running = commands.add_parser(
        "run", help="run the steps; 0: all done, 1: something failed, 2: no card or no weights, 3: something left out"
    )
    running.add_argument("steps", nargs="*", metavar="STEP", help=f"{', '.join(STEP_SECONDS)}; all by default")
    running.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal of small sizes")
    running.add_argument("--checkpoint", type=Path, help="checkpoint folder; the shipped one by default")
    running.add_argument("--cache", type=Path, default=ROOT / "runs" / "gpu_kit", help="converted backbone")
    running.add_argument("--results", type=Path, default=RESULTS, help="folder of the results gpu_*.json")
    return whole


def main() -> int:
    """Run the command that the arguments name and return its exit status."""
    arguments = parser().parse_args()
    if arguments.command == "pack":
        return pack(arguments.out, arguments.checkpoint, arguments.wheels)
    unknown = set(arguments.steps) - set(STEP_SECONDS)
    if unknown:
        parser().error(f"no such step: {', '.join(sorted(unknown))}; there are {', '.join(STEP_SECONDS)}")
    if arguments.device == "cpu" and arguments.results == RESULTS:
        parser().error("a rehearsal is no result: name another folder with --results")
    options = Options(arguments.device, arguments.checkpoint, arguments.cache.resolve())
    return run(arguments.steps or list(STEP_SECONDS), options, arguments.results)


if __name__ == "__main__":
    sys.exit(main())
