"""bfloat16_pays: whether bfloat16 is the faster precision on this machine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def bfloat16_pays(device: str) -> bool:
    """Return whether bfloat16 is faster than float32 on `device`, "cuda" or "cpu".

    Training and OpenVINO choose their precision by it (docs/decisions/0009-one-paged-engine.md). A CPU needs
    AVX512-BF16, and one that also has AVX512-FP16 needs AMX too. GFLOP/s of two cores in bfloat16: Zen 4 400; Zen 3,
    without AVX512-BF16, 17 (float32: 167); Sapphire Rapids with its AMX hidden 166 (float32: 278) (docs/log).
    """
    if device == "cuda":
        return True
    features = cpu_features()
    return "avx512_bf16" in features and ("avx512_fp16" not in features or "amx_bf16" in features)


def cpu_features() -> set[str]:
    """Return the CPU's instruction sets as Linux names them; empty on other systems.

    PyTorch knows them too, but its import takes seconds.
    """
    with suppress(OSError):
        for line in CPU_INFO.read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split(":")[1].split())
    return set()
