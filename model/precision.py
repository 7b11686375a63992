"""Which precision is fast on a machine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def bfloat16_pays(device: str) -> bool:
    """Whether bfloat16 is faster than float32 on a device of this type: in training, and in OpenVINO (decision 9).

    GFLOP/s of two cores: 400 on a Zen 4 with AVX512-BF16; but 17 against 167 on a Zen 3 without it, and 166 against 278
    on a Sapphire Rapids whose AMX is hidden (docs/experiments.md).
    """
    if device == "cuda":
        return True
    has = cpu_features()
    return "avx512_bf16" in has and ("avx512_fp16" not in has or "amx_bf16" in has)


def cpu_features() -> set[str]:
    """As Linux names them; none where it is not Linux. PyTorch would know too, but its import takes seconds."""
    with suppress(OSError):
        for line in CPU_INFO.read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split(":")[1].split())
    return set()
