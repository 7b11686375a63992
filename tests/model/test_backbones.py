"""Backbones from a folder: a tiny random model of each family goes from its files to trained, exported and served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model.config import NoteLLMConfig
from model.inference.openvino.runtime import OpenVinoRuntime
from model.notellm import NoteLLM, save_generation_adapter
from model.weights import BACKBONE_FOLDER
from tests.model.inference.samples import FEW_NOTES
from tests.model.inference.test_openvino import assert_same_outputs, load, read, save_random
from tests.models import FAMILIES

pytestmark = pytest.mark.slow


def load_backbone(folder: str) -> NoteLLM:
    """Load a backbone as training does, with a projection and the short prompt."""
    loaded = NoteLLM.load(folder, cache=Path(folder), device=torch.device("cpu"), dtype=torch.float32)
    config = NoteLLMConfig(name="own", backbone=folder, dimension=32, adapter=True, prompt_version="note-first/2")
    torch.manual_seed(0)
    return NoteLLM(config, loaded.backbone, loaded.tokenizer)


def states(model: NoteLLM, notes: int = 3) -> torch.Tensor:
    """Read-out states (notes, H) of the first notes, one forward each."""
    rows = []
    for note in FEW_NOTES[:notes]:
        ids = torch.tensor([model.prompt.note(note)])
        rows.append(model(ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None])[:, -1])
    return torch.cat(rows)


def train_adapter(model: NoteLLM) -> tuple[object, float, float]:
    """Train a LoRA for a few steps to tell three notes apart; return it with the first and the last loss."""
    adapter = model.add_adapter(4)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(8):
        vectors = model.embed(states(model))
        loss = nn.functional.cross_entropy(vectors @ vectors.detach().T / 0.1, torch.arange(len(vectors)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return adapter, losses[0], losses[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_family_is_trained_exported_and_served_as_pytorch_runs_it(
    family: str, backbone_folder: Path, tmp_path: Path
) -> None:
    save_random(FAMILIES[family], backbone_folder, tmp_path / "random")
    folder = str(tmp_path / "random" / BACKBONE_FOLDER)
    model = load_backbone(folder)
    adapter, first, last = train_adapter(model)
    assert last < first
    checkpoint = tmp_path / "checkpoint"
    model.save(checkpoint, adapter)
    trunk = NoteLLM.load(str(checkpoint), cache=tmp_path, device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        vectors = model.embed(states(model)).numpy()

    writer = trunk.add_adapter(4)
    for name, weight in writer.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.1)
    save_generation_adapter(writer, checkpoint, tmp_path)
    reference = load(str(checkpoint), tmp_path, runtime="torch")
    np.testing.assert_allclose(reference.embed(FEW_NOTES[:3]), vectors, atol=1e-4)
    if family == "gemma2":  # OpenVINO's paged attention lacks its cap on scores: PyTorch serves it
        served = load(str(checkpoint), tmp_path, runtime="auto")
        assert not isinstance(served.runtime, OpenVinoRuntime)
        return
    served = load(str(checkpoint), tmp_path)
    assert served.space == reference.space
    assert_same_outputs(read(served), read(reference))
    assert served.write_category(FEW_NOTES[:3]) == reference.write_category(FEW_NOTES[:3])
    assert served.runtime.pool.free == served.runtime.pool.count
