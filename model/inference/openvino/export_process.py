"""Export to OpenVINO in a process of its own.

The export needs PyTorch and the weights in float32, two gigabytes in all. A service that exported in its own process
would hold most of that for as long as it runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from model.config import CheckpointError
from model.weights import Progress, silent


def export_in_process(
    checkpoint: str, folder: Path, *, cache: Path, precision: str, progress: Progress = silent
) -> None:
    """Do what export.export does, in a new process. Raises CheckpointError, also where that process ends early."""
    arguments = json.dumps([checkpoint, str(folder), str(cache), precision])
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
        raise CheckpointError(f"its export to OpenVINO ended with status {process.returncode}")


def main() -> None:
    """Export as the arguments say, and write each message as a line of JSON: its kind and its text."""
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no message

    def write(kind: str, text: str) -> None:
        messages.write(json.dumps([kind, text]) + "\n")

    from model.inference.openvino.export import export

    checkpoint, folder, cache, precision = json.loads(sys.argv[1])
    try:
        export(
            checkpoint,
            Path(folder),
            cache=Path(cache),
            precision=precision,
            progress=lambda text: write("progress", text),
        )
    except CheckpointError as error:
        write("refused", str(error))


if __name__ == "__main__":
    main()
