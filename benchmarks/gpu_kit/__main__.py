"""Command line of the GPU kit."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import ROOT
from benchmarks.gpu_kit.options import Options
from benchmarks.gpu_kit.parts import PART_MIB
from benchmarks.gpu_kit.run import STEP_SECONDS, run
from benchmarks.harness.report import RESULTS

RUNS = ROOT / "runs"
GENERALIST = ROOT / "model" / "training" / "recipes" / "distillation" / "generalist.toml"
"""Default recipe of a distillation."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    whole = argparse.ArgumentParser(prog="python -m benchmarks.gpu_kit")
    commands = whole.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="write the parts that travel, and start.py")
    packing.add_argument("out", type=Path, help="empty or new folder")
    packing.add_argument("--checkpoint", type=Path, help="measure this checkpoint instead of the shipped one")
    packing.add_argument("--wheels", type=Path, help="folder of wheels for the other machine, which travel too")
    packing.add_argument(
        "--corpus", type=Path, help="folder of texts and teachers' vectors for distil, which travel too"
    )
    packing.add_argument("--recipe", type=Path, default=GENERALIST, help="recipe of distil; %(default)s")
    packing.add_argument("--part-mib", type=int, default=PART_MIB, help="MiB of a part, at most; %(default)s")
    running = commands.add_parser(
        "run", help="run the steps; 0: all done, 1: something failed, 2: no card or no weights, 3: something left out"
    )
    running.add_argument("steps", nargs="*", metavar="STEP", help=f"{', '.join(STEP_SECONDS)}; all by default")
    running.add_argument("--checkpoint", type=Path, help="checkpoint folder; the shipped one by default")
    running.add_argument("--results", type=Path, default=RESULTS, help="folder of the results gpu_*.json")
    distilling = commands.add_parser(
        "distil", help="distil and export, or go on with it; 0: exported, 1: stopped or too large, 2: no card"
    )
    distilling.add_argument("--corpus", type=Path, required=True, help="folder of texts and teachers' vectors")
    distilling.add_argument("--recipe", type=Path, default=GENERALIST, help="%(default)s")
    distilling.add_argument("--limit", type=float, default=24, help="minutes of the whole command; %(default)s")
    distilling.add_argument("--minutes", type=float, default=float("inf"), help="minutes of training in it, at most")
    distilling.add_argument("--rank", type=int, default=32, help="rank of the adapter; %(default)s")
    distilling.add_argument("--dimension", type=int, default=384, help="numbers of a vector; %(default)s")
    distilling.add_argument("--run", type=Path, default=RUNS / "gpu_distil", help="folder of the states")
    distilling.add_argument("--results", type=Path, default=RUNS / "distilled", help="folder of log and checkpoint")
    for command in (running, distilling):
        command.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
        command.add_argument("--cache", type=Path, default=RUNS / "gpu_kit", help="folder of the converted backbone")
    return whole


def run_steps(arguments: argparse.Namespace) -> int:
    """Run the steps that the arguments name and return the exit status."""
    if unknown := set(arguments.steps) - set(STEP_SECONDS):
        parser().error(f"no such step: {', '.join(sorted(unknown))}; there are {', '.join(STEP_SECONDS)}")
    if arguments.device == "cpu" and arguments.results == RESULTS:
        parser().error("a rehearsal is no result: name another folder with --results")
    options = Options(arguments.device, arguments.checkpoint, arguments.cache.resolve())
    return run(arguments.steps or list(STEP_SECONDS), options, arguments.results)


def main() -> int:
    """Run the command that the arguments name and return its exit status."""
    given = vars(parser().parse_args())
    command = given.pop("command")
    if command == "run":
        return run_steps(argparse.Namespace(**given))
    if command == "pack":  # imported here: both import PyTorch, which `run` leaves to the steps
        from benchmarks.gpu_kit.pack import pack

        return pack(given.pop("out"), part_bytes=given.pop("part_mib") << 20, **given)
    from benchmarks.gpu_kit.distil import Distilling, distil

    return distil(Distilling(**given))


if __name__ == "__main__":
    sys.exit(main())
