"""Tests of bfloat16_pays: it depends on the CPU features that Linux reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.precision import bfloat16_pays

ZEN_3, ZEN_4 = "fpu avx2", "fpu avx2 avx512f avx512_bf16"
SAPPHIRE_RAPIDS = f"{ZEN_4} avx512_fp16 amx_tile amx_bf16"


@pytest.mark.parametrize(
    ("flags", "pays"),
    [
        (ZEN_3, False),
        (ZEN_4, True),
        (SAPPHIRE_RAPIDS, True),
        (SAPPHIRE_RAPIDS.replace("amx_bf16", ""), False),
    ],
)
def test_bfloat16_pays_where_the_cpu_multiplies_it_fast(
    flags: str, pays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nmodel name\t: some\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    monkeypatch.setattr("model.precision.CPU_INFO", info)
    assert bfloat16_pays("cpu") is pays
    assert bfloat16_pays("cuda")


def test_bfloat16_does_not_pay_where_cpu_features_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.precision.CPU_INFO", tmp_path / "none")
    assert not bfloat16_pays("cpu")
