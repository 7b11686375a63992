"""Tests of exported checkpoints: vectors and words equal those of the original checkpoint, without PyTorch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.config import CheckpointError
from model.generation import GenerationRequest
from model.inference import loading
from model.inference.engine import Engine
from model.inference.openvino.exported import TOKENIZER_FOLDER, write_exported
from model.inference.openvino.window import WINDOW
from model.weights import GRAPHS_FOLDER, ORIGIN_FILE
from tests.model.inference.samples import FEW_NOTES

pytestmark = pytest.mark.slow
REQUEST = GenerationRequest(3, ("Food", "Travel", "Home and garden"))
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # an import of it fails
from pathlib import Path
from model.inference.engine import Engine
from model.note import Note
engine = Engine.load(sys.argv[1], cache=Path(sys.argv[2]), device="cpu")
print(engine.space, len(engine.generate([Note(title="bread")])[0].vector))
"""


@pytest.fixture(scope="module")
def served(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, exported in bfloat16."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    write_exported(str(tiny_checkpoint), folder, cache=tmp_path_factory.mktemp("cache"), precision="bfloat16")
    return folder


@pytest.fixture
def copied(served: Path, tmp_path: Path) -> Path:
    """A copy of the exported folder that a test may change."""
    return shutil.copytree(served, tmp_path / "copied")


def load(checkpoint: Path, cache: Path, dtype: str = "float32", runtime: str = "openvino") -> Engine:
    return Engine.load(str(checkpoint), cache=cache, device="cpu", runtime=runtime, dtype=dtype)


def test_export_gives_the_outputs_of_its_checkpoint(served: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    direct = load(tiny_checkpoint, tmp_path / "cache", "bfloat16")
    exported = load(served, tmp_path / "unused", "bfloat16")
    assert (exported.name, exported.space, exported.categories) == (direct.name, direct.space, direct.categories)
    for one, other in zip(direct.generate(FEW_NOTES, REQUEST), exported.generate(FEW_NOTES, REQUEST), strict=True):
        assert np.array_equal(one.vector, other.vector)
        assert (one.hashtags, one.categories) == (other.hashtags, other.categories)
    assert not (tmp_path / "unused").exists()


def test_half_floats_run_as_float32_in_the_same_space(served: Path, tiny_engine: Engine, tmp_path: Path) -> None:
    engine = load(served, tmp_path)
    assert engine.space == tiny_engine.space
    for one, other in zip(engine.generate(FEW_NOTES), tiny_engine.generate(FEW_NOTES), strict=True):
        assert float(one.vector @ other.vector) > 0.9999


def test_export_loads_where_torch_cannot_be_imported(served: Path, tiny_engine: Engine, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(served), str(tmp_path / "cache")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [tiny_engine.space, "32"]
    assert not (tmp_path / "cache").exists()


def test_other_users_may_read_an_export(served: Path) -> None:
    assert all(path.stat().st_mode & 0o004 for path in [served, *served.rglob("*")])


OTHER_VERSION = r"with graphs 1 of OpenVINO 2020\.1, but this is .*export it again"
OPENVINO_ALONE = "only runs in OpenVINO on a CPU: set NOTELLM_DEVICE=cpu"


@pytest.mark.parametrize(
    ("runtime", "reason"), [("openvino", OTHER_VERSION), ("auto", OTHER_VERSION), ("torch", OPENVINO_ALONE)]
)
def test_export_of_another_openvino_is_refused(runtime: str, reason: str, copied: Path, tmp_path: Path) -> None:
    origin = copied / GRAPHS_FOLDER / ORIGIN_FILE
    origin.write_text(json.dumps({**json.loads(origin.read_text()), "version": "graphs 1 of OpenVINO 2020.1"}))
    with pytest.raises(CheckpointError, match=reason):
        load(copied, tmp_path, runtime=runtime)


@pytest.mark.parametrize("content", ["{", "{}"], ids=["truncated", "without its keys"])
def test_export_with_a_broken_origin_is_refused(content: str, copied: Path, tmp_path: Path) -> None:
    (copied / GRAPHS_FOLDER / ORIGIN_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=r"export\.json could not be loaded"):
        load(copied, tmp_path)


def test_export_for_longer_notes_than_its_window_is_refused(copied: Path, tmp_path: Path) -> None:
    (copied / GRAPHS_FOLDER / WINDOW).write_text("100")
    with pytest.raises(CheckpointError, match="sliding window of 100 tokens"):
        load(copied, tmp_path)


def test_export_with_a_broken_tokenizer_is_refused_by_the_name_of_its_folder(copied: Path, tmp_path: Path) -> None:
    (copied / TOKENIZER_FOLDER / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=f"{copied / TOKENIZER_FOLDER} could not be loaded"):
        load(copied, tmp_path)


@pytest.mark.parametrize("runtime", ["openvino", "auto"])
def test_half_floats_are_not_run_as_int8(runtime: str, served: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="exported as bfloat16, which cannot run as int8"):
        load(served, tmp_path, "int8", runtime)


def test_export_that_was_killed_is_made_anew(served: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    leftover = tmp_path / "served.unfinished" / GRAPHS_FOLDER
    leftover.mkdir(parents=True)
    (leftover / "half a graph").touch()
    write_exported(str(tiny_checkpoint), tmp_path / "served", cache=tmp_path / "cache", precision="bfloat16")
    assert not (tmp_path / "served.unfinished").exists()

    def names(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*")}

    assert names(tmp_path / "served") == names(served)


def test_existing_folder_is_not_written_to(served: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="already exists"):
        write_exported(str(tiny_checkpoint), served, cache=tmp_path, precision="float32")


@pytest.mark.parametrize("runtime", ["auto", "torch"])
def test_checkpoint_that_needs_torch_says_what_to_do(
    runtime: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "torch_installed", lambda: False)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "model.inference.openvino.export", raising=False)
    with pytest.raises(CheckpointError, match=r"PyTorch is not installed.*notellm\[torch\].*notellm export"):
        Engine.load(str(tiny_checkpoint), cache=tmp_path, device="cpu", runtime=runtime)


def test_gpu_without_torch_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "torch_installed", lambda: False)
    messages: list[str] = []
    assert loading.device_for("cuda", messages.append) == "cpu"
    assert messages == ["The model runs on the CPU: PyTorch, which a GPU requires, is not installed"]
