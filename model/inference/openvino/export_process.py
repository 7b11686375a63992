"""Conversion and export to OpenVINO in a separate process.

Both need PyTorch and the weights in float32, two gigabytes in all. A service that did either in its own process would
keep most of that memory for as long as it runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from model.config import CheckpointError
from model.weights import Progress, silent


def export_in_process(checkpoint: str, precision: str, *, cache: Path, progress: Progress = silent) -> None:
    """Run `load.export_to_cache` in a new process. Raises CheckpointError, also if that process fails."""
    arguments = json.dumps([checkpoint, precision, str(cache)])
    refused = ""
    with subprocess.Popen([sys.executable, "-m", __name__, arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            kind, text = json.loads(line)
            if kind == "progress":
                progress(text)
            else:
                refused = text
    if refused:
        raise CheckpointError(refused)
    if process.returncode:
        raise CheckpointError(f"the export to OpenVINO failed with exit status {process.returncode}")


def main() -> None:
    """Export as the command-line arguments say, and write each message to standard output as a line of JSON: [kind,
    text]."""
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries goes to standard error

    def write(kind: str, text: str) -> None:
        messages.write(json.dumps([kind, text]) + "\n")

    from model.inference.openvino.load import export_to_cache

    checkpoint, precision, cache = json.loads(sys.argv[1])
    try:
        export_to_cache(checkpoint, precision, cache=Path(cache), progress=lambda text: write("progress", text))
    except CheckpointError as error:
        write("refused", str(error))


if __name__ == "__main__":
    main()
