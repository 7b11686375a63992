"""Which precision is fast on a machine."""

from __future__ import annotations

import torch


def bfloat16_pays(device: torch.device) -> bool:
    """Whether bfloat16 is faster there than float32: in training, and in OpenVINO (decision 9).

    GFLOP/s of two cores: 400 on a Zen 4 with AVX512-BF16; but 17 against 167 on a Zen 3 without it, and 166 against 278
    on a Sapphire Rapids whose AMX is hidden (docs/experiments.md).
    """
    if device.type == "cuda":
        return True
    has = torch.cpu.get_capabilities()
    without_amx = has.get("avx512_fp16") and not has.get("amx_bf16")
    return bool(has.get("avx512_bf16")) and not without_amx
