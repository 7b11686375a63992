"""OpenVINO reads what PyTorch reads, of every family; and its files are made once."""

from __future__ import annotations

import mmap
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, PreTrainedConfig

from model.config import CheckpointError, NoteLLMConfig
from model.generation import GenerationOutput, GenerationRequest
from model.inference.engine import Engine
from model.inference.openvino import export as openvino_export
from model.inference.openvino.runtime import forget_files
from model.note import Note
from model.notellm import NoteLLM
from tests.conftest import COMMON, FAMILIES, FOODS

SUPPORTED = [family for family in FAMILIES if family != "gemma2"]
WORDS = ["coffee", "river", "cat", "train", "garden", "lamp", "paint", "salt", "winter", "song", "bread", "cloud"]
NOTES = [
    Note(
        title=" ".join(WORDS[i : i + i % 4]),
        content=" ".join(WORDS[(3 * i + j) % len(WORDS)] for j in range(i * i)),
        hashtags=tuple(WORDS[:i:2]),
    )
    for i in range(9)
]
WANTED = [GenerationRequest(), GenerationRequest(3), GenerationRequest(0, FOODS), GenerationRequest(2, FOODS)]


def saved(config: PreTrainedConfig, backbone_folder: Path, folder: Path) -> str:
    """A random model of a family as a checkpoint, with the real tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(backbone_folder)
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 2
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    NoteLLM(NoteLLMConfig(name="random", dimension=32), backbone, tokenizer).save(folder)
    return str(folder)


def engine(checkpoint: str, cache: Path, dtype: str = "float32", runtime: str = "openvino") -> Engine:
    return Engine.load(checkpoint, cache=cache, device="cpu", dtype=dtype, runtime=runtime)


def read(engine: Engine, notes: Sequence[Note] = NOTES) -> list[GenerationOutput]:
    """Of each note something else, all together."""
    return engine.run([engine.tokenize(note, WANTED[i % len(WANTED)]) for i, note in enumerate(notes)])


def check_same(some: Sequence[GenerationOutput], others: Sequence[GenerationOutput]) -> None:
    for one, other in zip(some, others, strict=True):
        assert float(one.vector @ other.vector) >= 0.9999
        assert [h.text for h in one.hashtags or ()] == [h.text for h in other.hashtags or ()]
        assert [h.score for h in one.hashtags or ()] == pytest.approx([h.score for h in other.hashtags or ()], rel=1e-2)
        assert {c.name: c.probability for c in one.categories or ()} == pytest.approx(
            {c.name: c.probability for c in other.categories or ()}, abs=1e-3
        )
        assert one.usage == other.usage


@pytest.mark.parametrize("family", SUPPORTED)
def test_every_family_reads_what_it_reads_in_pytorch(family: str, backbone_folder: Path, tmp_path: Path) -> None:
    checkpoint = saved(FAMILIES[family], backbone_folder, tmp_path / "checkpoint")
    torch_engine, exported = engine(checkpoint, tmp_path, runtime="torch"), engine(checkpoint, tmp_path)
    assert (exported.space, exported.dimension) == (torch_engine.space, torch_engine.dimension)
    check_same(read(exported), read(torch_engine))
    assert exported.write_category(NOTES[:4]) == torch_engine.write_category(NOTES[:4])


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_nothing_that_is_read_depends_on_the_batch(dtype: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    of = engine(str(tiny_checkpoint), tmp_path, dtype)
    alone = [of.run([of.tokenize(note, WANTED[i % len(WANTED)])])[0] for i, note in enumerate(NOTES)]
    check_same(read(of), alone)
    assert of.runtime.pool.free == of.runtime.pool.count


@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 0.999), ("int8", 0.98)])
def test_fewer_bits_are_near_to_all(dtype: str, least: float, tiny_checkpoint: Path, tmp_path: Path) -> None:
    whole, small = (engine(str(tiny_checkpoint), tmp_path, each) for each in ("float32", dtype))
    vectors, others = whole.embed(NOTES), small.embed(NOTES)
    assert (vectors * others).sum(1).min() > least
    assert not np.array_equal(vectors, others)
    assert small.space == whole.space
    files = [
        sum(file.stat().st_size for file in tmp_path.glob(f"openvino-{each}-*/*.bin")) for each in ("float32", dtype)
    ]
    assert files[1] < 0.7 * files[0], "less is kept, too"


def test_what_was_exported_is_loaded_without_pytorch(backbone_folder: Path, tmp_path: Path) -> None:
    """With a tokenizer as the packaged model has it. PyTorch takes seconds of a start and 250 MB."""
    checkpoint = saved(FAMILIES["llama"], backbone_folder, tmp_path / "checkpoint")
    engine(checkpoint, tmp_path)
    script = (
        "import sys; from pathlib import Path; from model.inference.engine import Engine; from model.note import Note\n"
        f"engine = Engine.load({checkpoint!r}, cache=Path({str(tmp_path)!r}), device='cpu', dtype='float32')\n"
        "assert engine.runtime.precision.startswith('OpenVINO'); assert len(engine.embed([Note(title='cat')])) == 1\n"
        "print('torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False"]


def test_files_are_made_once_and_for_each_checkpoint_apart(
    tiny_checkpoint: Path, backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = engine(str(tiny_checkpoint), cache)
    other = engine(saved(FAMILIES["llama"], backbone_folder, tmp_path / "other"), cache)
    assert len(list(cache.iterdir())) == 2

    def fail(*args: object, **options: object) -> None:
        raise AssertionError("it is made again")

    monkeypatch.setattr(openvino_export, "export", fail)
    np.testing.assert_array_equal(engine(str(tiny_checkpoint), cache).embed(NOTES), first.embed(NOTES))
    assert first.space != other.space


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (FAMILIES["gemma2"], "no paged attention like that of Gemma2Attention"),
        (MistralConfig(**COMMON, sliding_window=16), "a window of 16 tokens is shorter than a note's prompt"),
    ],
    ids=["gemma2", "mistral"],
)
def test_attention_that_openvino_does_not_have_is_refused_and_nothing_is_left(
    config: PreTrainedConfig, reason: str, backbone_folder: Path, tmp_path: Path
) -> None:
    checkpoint = saved(config, backbone_folder, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=reason):
        engine(checkpoint, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(engine(checkpoint, tmp_path, runtime="torch").embed(NOTES)) == len(NOTES)


def test_a_broken_file_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    engine(str(tiny_checkpoint), tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "layers.xml").write_text("<net")
    with pytest.raises(CheckpointError, match=folder.name):
        engine(str(tiny_checkpoint), tmp_path)


def test_what_was_read_of_mapped_files_is_given_back_and_still_right(tmp_path: Path) -> None:
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


def resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    next(line for line in lines if line.endswith(f" {path}"))
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
