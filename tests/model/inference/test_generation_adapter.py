"""Generation adapter: it changes what is written after a note, and neither the vector nor the number of forwards.

Tests that use the `writer` fixture also run with a decoder that differs from the trunk.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, DynamicCache

from model.config import CheckpointError, NoteLLMConfig
from model.generation import VECTOR_ONLY, GenerationRequest
from model.inference.engine import Engine
from model.inference.openvino.exported import write_exported
from model.inference.openvino.runtime import computes_bfloat16
from model.notellm import NoteLLM, quiet_peft
from model.weights import ADAPTER_CONFIG_FILE, ADAPTER_FILE, BACKBONE_FOLDER, GENERATION_FOLDER
from tests.conftest import FOODS
from tests.model.inference.models import add_random_generation_adapter
from tests.model.inference.outputs import generate, probabilities, record_forwards, texts, vectors
from tests.model.inference.reference import assert_outputs_match_reference
from tests.model.inference.samples import FEW_NOTES
from tests.model.inference.test_openvino import assert_same_outputs, load, read, save_random
from tests.models import FAMILIES, in_torch

EVERYTHING = GenerationRequest(2, FOODS)


def load_model(checkpoint: Path) -> NoteLLM:
    return NoteLLM.load(str(checkpoint), cache=checkpoint, device=torch.device("cpu"), dtype=torch.float32)


def assert_only_the_vectors_are_the_same(engine: Engine, plain: Engine) -> None:
    """Assert that vectors are equal bit for bit, whatever else is requested, and hashtags and probabilities differ."""
    assert engine.space == plain.space
    expected = vectors(generate(plain, FEW_NOTES))
    np.testing.assert_array_equal(vectors(generate(engine, FEW_NOTES)), expected)
    outputs = generate(engine, FEW_NOTES, EVERYTHING)
    np.testing.assert_array_equal(vectors(outputs), expected)
    for output, other in zip(outputs, generate(plain, FEW_NOTES, EVERYTHING), strict=True):
        assert texts(output.hashtags) != texts(other.hashtags)
        assert probabilities(output) != pytest.approx(probabilities(other), rel=1e-2)


def test_adapter_changes_what_is_written_and_no_vector(activated: Engine, tiny_engine: Engine) -> None:
    assert_only_the_vectors_are_the_same(activated, tiny_engine)


def test_note_and_tasks_are_one_span_of_one_forward(activated: Engine, tiny_engine: Engine) -> None:
    requests = [VECTOR_ONLY, EVERYTHING, GenerationRequest(3), GenerationRequest(0, FOODS), GenerationRequest(1)]
    with record_forwards(activated) as forwards:
        outputs = generate(activated, FEW_NOTES, requests)
    with record_forwards(tiny_engine) as plain_forwards:
        plain_outputs = generate(tiny_engine, FEW_NOTES, requests)
    assert forwards[0] == plain_forwards[0]
    assert [o.usage.prompt_tokens for o in outputs] == [o.usage.prompt_tokens for o in plain_outputs]


def test_outputs_match_note_by_trunk_and_task_by_decoder(activated: Engine) -> None:
    assert_outputs_match_reference(activated)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_family_with_adapter_matches_reference(family: str, backbone_folder: Path, tmp_path: Path) -> None:
    checkpoint = Path(save_random(FAMILIES[family], backbone_folder, tmp_path / "checkpoint"))
    add_random_generation_adapter(checkpoint)
    assert_outputs_match_reference(in_torch(checkpoint, tmp_path))


@torch.inference_mode()
def test_decoder_reads_as_peft_with_the_adapter_active(activated_checkpoint: Path) -> None:
    """The reference applies the adapter through peft, switched off for the note and on for the task."""
    model = load_model(activated_checkpoint)
    backbone = AutoModelForCausalLM.from_pretrained(activated_checkpoint / BACKBONE_FOLDER)
    with quiet_peft():
        adapter = PeftModel.from_pretrained(backbone, str(activated_checkpoint / GENERATION_FOLDER)).eval()
    adapted = NoteLLM(model.config, backbone, model.tokenizer)
    note, task = model.prompt.note(FEW_NOTES[1]), model.prompt.hashtag_task(3)
    ids = torch.tensor([[*note, *task]])
    mask = torch.ones_like(ids)
    positions = mask.cumsum(1) - 1
    begin, end = slice(0, len(note)), slice(len(note), None)

    cache = DynamicCache()
    with adapter.disable_adapter():
        adapted(ids[:, begin], mask[:, begin], positions[:, begin], cache)
    expected = adapted.logits(adapted(ids[:, end], mask, positions[:, end], cache))

    cache = DynamicCache()
    model(ids[:, begin], mask[:, begin], positions[:, begin], cache)
    logits = model.logits(model(ids[:, end], mask, positions[:, end], cache, decode=True))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the exported files of the tiny checkpoint, with a generation adapter and without."""
    return tmp_path_factory.mktemp("exported")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_openvino_adapter_changes_no_vector(
    dtype: str, activated_checkpoint: Path, tiny_checkpoint: Path, exported: Path
) -> None:
    engine, plain = (load(str(folder), exported, dtype) for folder in (activated_checkpoint, tiny_checkpoint))
    assert len(list(exported.glob(f"openvino-{dtype}-*"))) == 2, "both checkpoints have the same exported files"
    assert_only_the_vectors_are_the_same(engine, plain)


@pytest.mark.slow
def test_exported_folder_writes_with_the_adapter(activated_checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    write_exported(str(activated_checkpoint), tmp_path / "served", cache=exported, precision="float32")
    served, loaded = (load(str(folder), exported) for folder in (tmp_path / "served", activated_checkpoint))
    assert_same_outputs(read(served), read(loaded))


@pytest.mark.slow
def test_precision_says_where_the_decoder_has_another(
    activated_checkpoint: Path, tiny_checkpoint: Path, exported: Path, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    write_exported(str(activated_checkpoint), served, cache=exported, precision="bfloat16")
    bfloat16 = "bfloat16" if computes_bfloat16(ov.Core()) else "bfloat16 computed in float32"
    for folder, dtype, precision in (
        (served, "float32", "OpenVINO float32 with an 8-bit decoder"),
        (served, "bfloat16", f"OpenVINO {bfloat16} with an 8-bit decoder"),
        (activated_checkpoint, "float32", "OpenVINO float32"),
        (activated_checkpoint, "int8", "OpenVINO int8"),
        (tiny_checkpoint, "bfloat16", f"OpenVINO {bfloat16}"),
    ):
        assert load(str(folder), exported, dtype).runtime.precision == precision


@pytest.mark.parametrize("missing", [ADAPTER_FILE, ADAPTER_CONFIG_FILE])
@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_checkpoint_that_lacks_a_generation_file_is_refused(
    missing: str, runtime: str, activated_checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(activated_checkpoint, tmp_path / "copy"))
    (folder / GENERATION_FOLDER / missing).unlink()
    with pytest.raises(
        CheckpointError, match=f"{missing} is missing, but .* says that the checkpoint has a generation adapter"
    ):
        load(str(folder), tmp_path, runtime=runtime)


def test_generation_adapter_of_another_shape_is_refused(
    activated_checkpoint: Path, backbone_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(activated_checkpoint, tmp_path / "copy"))
    other = Path(save_random(FAMILIES["mistral"], backbone_folder, tmp_path / "other"))
    add_random_generation_adapter(other, rank=8)
    shutil.copy(other / GENERATION_FOLDER / ADAPTER_FILE, folder / GENERATION_FOLDER / ADAPTER_FILE)
    with pytest.raises(CheckpointError):
        load_model(folder)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_generation_adapter_of_another_trunk_is_refused(
    runtime: str, activated_checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(activated_checkpoint, tmp_path / "copy"))
    replace(NoteLLMConfig.load(folder), generation_trunk="0" * 64).save(folder)
    with pytest.raises(CheckpointError, match="was trained on another trunk"):
        load(str(folder), tmp_path, runtime=runtime)


def test_prompt_with_the_task_first_has_no_generation_adapter(activated_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(activated_checkpoint, tmp_path / "copy"))
    replace(NoteLLMConfig.load(folder), prompt_version="task-first/1").save(folder)
    with pytest.raises(CheckpointError, match="not 'task-first/1'"):
        load_model(folder)


def test_saved_trunk_has_no_generation_adapter(activated_checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(activated_checkpoint)
    model.save(tmp_path)
    saved = load_model(tmp_path)
    assert saved.decoder is None
    assert saved.space == model.space


def test_adapter_switched_off_leaves_the_trunk_as_it_was(activated_checkpoint: Path) -> None:
    """Training computes notes with the adapter switched off, and tasks with it."""
    model, trained = load_model(activated_checkpoint), load_model(activated_checkpoint)
    adapter = trained.add_adapter(4)
    trainable = [name for name, parameter in trained.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all(".lora_" in name for name in trainable)
    with adapter.disable_adapter():
        assert torch.equal(states(trained), states(model))


def states(model: NoteLLM) -> torch.Tensor:
    ids = torch.tensor([model.prompt.note(FEW_NOTES[1])])
    mask = torch.ones_like(ids)
    hidden: torch.Tensor = model(ids, mask, mask.cumsum(1) - 1)
    return hidden
