"""A step of the GPU kit as a process: prints its rows as JSON, one a line, and everything else to standard error."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator

from benchmarks.gpu_kit.options import LEFT_OUT, LeftOut, Options
from benchmarks.harness.report import Row, row


def rows(name: str, options: Options) -> Iterator[Row]:
    """Yield the rows of a step; if the machine lacks something that the step needs, the last row names it."""
    try:
        yield from importlib.import_module(f"benchmarks.gpu_kit.{name}").rows(options)
    except ModuleNotFoundError as error:
        yield row(name, LEFT_OUT, spread=f"no module {error.name} here")
    except LeftOut as error:
        yield row(name, LEFT_OUT, spread=str(error))


def end_with_parent() -> None:
    """Wait until standard input ends, as it does with the parent process; then kill this process and its children."""
    os.read(sys.stdin.fileno(), 1)  # not by sys.stdin: an exit would wait for its lock
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Run the step that the arguments name."""
    name, *arguments = sys.argv[1:]
    threading.Thread(target=end_with_parent, daemon=True).start()
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as output:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # keeps what libraries print apart from the rows
        for line in rows(name, Options.of(*arguments)):
            print(json.dumps(line), file=output, flush=True)


if __name__ == "__main__":
    main()
