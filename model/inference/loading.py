"""Loading: choice of the device, library and number format that run a checkpoint."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from model.config import CheckpointError
from model.inference.runtime import Runtime
from model.weights import Progress, is_exported, silent

CUDA_DRIVERS = tuple(map(Path, ("/dev/nvidiactl", "/dev/dxg", "/dev/nvmap", "/dev/kfd")))
"""Device files of GPU drivers: NVIDIA on Linux, WSL, Jetson, and AMD. On other systems NOTELLM_DEVICE=cuda makes
PyTorch look for a GPU."""
EXPORT = "run pip install 'notellm[torch]', or set NOTELLM_CHECKPOINT to a folder made by `notellm export`"


def load_runtime(
    checkpoint: str,
    *,
    cache: Path,
    device: str,
    dtype: str,
    runtime: str,
    progress: Progress = silent,
    isolated_export: bool = False,
) -> Runtime:
    """Load a checkpoint into the runtime that fits this machine; the arguments are those of Engine.load.

    Raises CheckpointError.
    """
    device = device_for(device, progress)
    if runtime == "openvino" and device != "cpu":
        raise CheckpointError(f"OpenVINO runs on a CPU only, not on {device}: set NOTELLM_DEVICE=cpu")
    if runtime == "openvino" or (runtime == "auto" and device == "cpu"):
        try:
            from model.inference.openvino import load as openvino_load

            return openvino_load.load(
                checkpoint, dtype, cache=cache, progress=progress, isolated_export=isolated_export
            )
        except (ImportError, CheckpointError) as error:
            if runtime == "openvino" or is_exported(checkpoint) or not torch_installed():
                raise CheckpointError(f"OpenVINO cannot run this checkpoint: {reason_of(error)}") from error
            progress(f"PyTorch runs the model, because OpenVINO cannot: {error}")
    return _load_torch(checkpoint, cache=cache, device=device, dtype=dtype, progress=progress)


def torch_installed() -> bool:
    """Return whether PyTorch is installed, without importing it. An image that serves exported graphs has none."""
    return importlib.util.find_spec("torch") is not None


def reason_of(error: Exception) -> str:
    """Return the error's message, or what to install if PyTorch, which the export needs, is missing."""
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        return f"PyTorch is not installed, and the checkpoint is not exported: {EXPORT}"
    return str(error)


def _load_torch(checkpoint: str, *, cache: Path, device: str, dtype: str, progress: Progress) -> Runtime:
    if is_exported(checkpoint):
        raise CheckpointError(
            f"{checkpoint} is exported and only runs in OpenVINO on a CPU: set NOTELLM_DEVICE=cpu and NOTELLM_RUNTIME "
            "to auto or openvino, or use the checkpoint that it was exported from"
        )
    if not torch_installed():
        raise CheckpointError(f"PyTorch is not installed: {EXPORT}")
    import torch

    from model.inference.torch_runtime import TorchRuntime
    from model.notellm import NoteLLM

    if dtype == "int8":
        raise CheckpointError("int8 is only supported by OpenVINO: choose another NOTELLM_DTYPE")
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    model = NoteLLM.load(
        checkpoint, cache=cache, device=torch.device(device), dtype=getattr(torch, dtype), progress=progress
    )
    return TorchRuntime(model)


def device_for(requested: str, progress: Progress = silent) -> str:
    """Return "cuda" where that is `requested` and PyTorch can use a GPU, or where `requested` is "auto" and there is
    also a driver; else "cpu".

    Importing PyTorch takes seconds, so "auto" looks for a driver first.
    """
    if requested == "cpu" or (requested == "auto" and not any(driver.exists() for driver in CUDA_DRIVERS)):
        return "cpu"
    if not torch_installed():
        progress("The model runs on the CPU: PyTorch, which a GPU requires, is not installed")
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
    progress(f"The model runs on the CPU: PyTorch {torch.__version__} finds no GPU, and {built}")
    return "cpu"
