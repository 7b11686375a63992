"""Tests of model/weights.py: only safetensors are read, code never runs, and a GGUF is converted once or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from model.config import PACKAGED_BACKBONE, CheckpointError
from model.notellm import NoteLLM
from model.weights import (
    BACKBONE_FOLDER,
    adaptable,
    convert_gguf,
    file_digest,
    folder_digest,
    loading_errors,
    packaged_gguf,
    resolve,
    unfinished_folder,
)


def load(checkpoint: Path, cache: Path) -> NoteLLM:
    return NoteLLM.load(str(checkpoint), cache=cache, device=torch.device("cpu"), dtype=torch.float32)


def test_folder_with_only_pickled_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    torch.save({"weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        resolve(str(tmp_path), tmp_path / "cache")


def test_checkpoint_with_pickled_weights_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (folder / "backbone" / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "backbone" / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        load(folder, tmp_path)


def test_folder_with_safetensors_is_used_in_place(backbone_folder: Path, tmp_path: Path) -> None:
    assert resolve(str(backbone_folder), tmp_path / "cache") == backbone_folder
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["no-such-owner/no-such-model", "no such name", "a/b/c", "/no/such/folder"])
def test_backbone_neither_folder_nor_on_hub_is_refused_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=name):
        resolve(name, tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64],
    ids=["empty", "junk", "only the magic", "absurd counts"],
)
def test_gguf_that_is_broken_leaves_nothing_in_the_cache(content: bytes, tmp_path: Path) -> None:
    broken, cache = tmp_path / "broken.gguf", tmp_path / "cache"
    broken.write_bytes(content)
    with pytest.raises(CheckpointError, match="could not be converted"):
        convert_gguf(broken, cache)
    assert list(cache.iterdir()) == []


def test_gguf_that_is_truncated_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    broken, cache = tmp_path / "broken.gguf", tmp_path / "cache"
    with packaged_gguf().open("rb") as whole:
        broken.write_bytes(whole.read(4_000_000))
    with pytest.raises(CheckpointError, match="could not be converted"):
        convert_gguf(broken, cache)
    assert list(cache.iterdir()) == []


def test_gguf_already_converted_is_not_converted_again(backbone_folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in backbone_folder.iterdir()}
    messages: list[str] = []
    assert resolve(PACKAGED_BACKBONE, backbone_folder.parent, messages.append) == backbone_folder
    assert {path.name: path.stat().st_mtime_ns for path in backbone_folder.iterdir()} == before
    assert messages == []


def test_conversion_is_named_after_the_digest_of_its_source(backbone_folder: Path) -> None:
    assert backbone_folder.name.endswith(file_digest(packaged_gguf())[:16])


@pytest.mark.parametrize("model_type", ["llama", "custom"])
def test_code_in_a_checkpoint_never_runs(model_type: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint / "backbone", tmp_path / "copy")
    (folder / "custom.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    classes = {"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M", "AutoTokenizer": [None, "custom.T"]}
    for name in ("config.json", "tokenizer_config.json"):
        stored = json.loads((folder / name).read_text())
        stored |= {"auto_map": classes} | ({"model_type": model_type} if name == "config.json" else {})
        (folder / name).write_text(json.dumps(stored))
    if model_type == "llama":  # transformers' own class for this type is used
        assert type(load(folder, tmp_path).backbone).__module__.startswith("transformers.")
    else:
        with pytest.raises(CheckpointError):
            load(folder, tmp_path)
    assert list(tmp_path.rglob("ran")) == []


def test_file_digest_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"weights")
    assert file_digest(tmp_path / "f") == hashlib.sha256(b"weights").hexdigest()


def test_folder_digest_depends_on_the_weights_alone(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"1")
    (tmp_path / "b.safetensors").write_bytes(b"2")
    first = folder_digest(tmp_path)
    (tmp_path / "README.md").write_text("read me")
    assert folder_digest(tmp_path) == first
    (tmp_path / "b.safetensors").write_bytes(b"3")
    changed = folder_digest(tmp_path)
    (tmp_path / "b.safetensors").rename(tmp_path / "c.safetensors")
    assert len({first, changed, folder_digest(tmp_path)}) == 3


def test_backbone_of_an_adapter_is_named_by_its_absolute_path(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_checkpoint)
    assert adaptable(BACKBONE_FOLDER) == str(tiny_checkpoint / BACKBONE_FOLDER)
    assert adaptable(PACKAGED_BACKBONE) == PACKAGED_BACKBONE
    with pytest.raises(CheckpointError, match=rf"use {tiny_checkpoint / BACKBONE_FOLDER}$"):
        adaptable(str(tiny_checkpoint))


def test_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    with pytest.raises(CheckpointError, match=f"cannot write to the cache {cache}"):
        convert_gguf(tmp_path / "file", cache)


def test_folder_for_the_cache_has_the_permissions_of_any_new_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    folder = unfinished_folder(tmp_path / "weights")
    assert folder != unfinished_folder(tmp_path / "weights")
    assert folder.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_error_of_a_checkpoint_keeps_its_message_while_weights_are_loaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^unknown prompt version$"), loading_errors(tmp_path):
        raise CheckpointError("unknown prompt version")
    with pytest.raises(CheckpointError, match=f"^{tmp_path} could not be loaded: no number$"), loading_errors(tmp_path):
        raise ValueError("no number")


def test_other_users_may_read_a_saved_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    folder.chmod(0o755)
    load(tiny_checkpoint, tmp_path / "cache").save(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} > {".safetensors"}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files)
