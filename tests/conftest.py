"""Fixtures that all tests share: the packaged backbone, and a tiny real checkpoint that loads in a moment."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import ssl
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from model.config import PACKAGED_BACKBONE, NoteLLMConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from model.inference.engine import Engine

# PyTorch, and what imports it, is imported in the fixtures: pytest-xdist's controller, which runs no test, imports this
# file before it starts the first worker.

settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("repeatable")  # examples have no deadline, and every run has the same ones

LONGEST = (
    "service/test_chaos.py",
    "service/test_tenant_isolation.py",
    "service/api/test_fuzz.py",
    "service/index/test_vector_index.py",
    "service/cli/test_process.py",
    "service/api/test_kills.py",
    "service/test_raw_requests.py",
    "service/test_rolling_restart.py",
    "model/inference/test_openvino.py",
    "model/training/test_distributed.py",
    "model/training/test_trainer.py",
    "model/data/test_pairs.py",
)
"""Files that take longest. They run first, the longest one first, so that no worker waits for another at the end."""

FOODS = ("Food", "Food and Drink", "Foodie", "Travel")
"""A closed set in which names are prefixes of others, as text and as tokens."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files of LONGEST first; the others keep their order."""
    tests = Path(__file__).parent
    places = {tests / name: place for place, name in enumerate(LONGEST)}
    assert all(map(Path.is_file, places)), "LONGEST names a file that is not there"
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> None:
    """Let PyTorch use one thread: two threads on two busy cores wait for each other, which is ten times slower."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def certificates_loaded_once() -> Iterator[None]:
    """Load the certificates that the machine trusts once, and not for each httpx2 client, which takes 20 ms. A test
    that names others in the environment gets those."""
    try:
        import httpcore2
    except ModuleNotFoundError:  # the GPU kit may run the engine's tests on a machine without the service's packages
        yield
        return
    load = httpcore2.default_ssl_context

    @functools.cache
    def loaded(trust_env: bool, file: str | None, folder: str | None) -> ssl.SSLContext:
        return load(_trust_env=trust_env)

    def default_ssl_context(*, _trust_env: bool = True) -> ssl.SSLContext:
        return loaded(_trust_env, os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpcore2, "default_ssl_context", default_ssl_context)
        yield


@pytest.fixture(autouse=True, scope="session")
def tokenizers_loaded_once() -> Iterator[None]:
    """Load each tokenizer once, and not for each engine and each training run, which takes a quarter of a second.
    Tokenizers whose files have the same content are one object: a test that changes one loads it itself."""
    from model import weights

    load = weights.load_tokenizer
    loaded: dict[tuple[tuple[str, str], ...], PreTrainedTokenizerBase] = {}

    def load_once(folder: Path) -> PreTrainedTokenizerBase:
        files = [path for path in sorted(folder.glob("*")) if path.is_file() and path.suffix != ".safetensors"]
        content = tuple((path.name, weights.file_digest(path)) for path in files)
        if content not in loaded:
            loaded[content] = load(folder)
        return loaded[content]

    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("model.") and getattr(module, "load_tokenizer", None) is load:
                patch.setattr(module, "load_tokenizer", load_once)
        yield


@pytest.fixture(autouse=True)
def process_settings() -> Iterator[None]:
    """Restore the process-wide settings that a command run in the test's process may change: PyTorch's number of
    threads and the handlers of SIGTERM and SIGHUP."""
    import torch

    threads = torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    for number, handler in handlers.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def backbone_folder() -> Path:
    """Folder of the packaged weights as safetensors, with their tokenizer; converted once per machine."""
    from model.weights import resolve

    cache = Path(os.environ.get("NOTELLM_TEST_CACHE", "~/.cache/notellm")).expanduser()
    return resolve(PACKAGED_BACKBONE, cache)


@pytest.fixture(scope="session")
def tiny_checkpoint(backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint: a random two-layer Llama, a projection to 32 dimensions, and the real tokenizer."""
    from tests.models import save_tiny

    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder, backbone_folder)
    return folder


@pytest.fixture(scope="session")
def tiny_engine(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An Engine on the tiny checkpoint, in PyTorch, float32. It is shared: a test must not change its model."""
    from tests.models import in_torch

    return in_torch(tiny_checkpoint, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_task_first(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An Engine on the same weights with the prompt version that puts the task first. It is shared as well."""
    return _with_prompt_version("task-first/1", tiny_checkpoint, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_short(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An Engine on the same weights with the short prompt version, hashtags last. It is shared as well."""
    return _with_prompt_version("note-first/2", tiny_checkpoint, tmp_path_factory)


def _with_prompt_version(version: str, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Load a copy of `checkpoint` whose configuration names another prompt version."""
    from tests.models import in_torch

    folder = tmp_path_factory.mktemp("tiny") / "copy"
    shutil.copytree(checkpoint, folder)
    replace(NoteLLMConfig.load(folder), prompt_version=version).save(folder)
    return in_torch(folder, tmp_path_factory.mktemp("cache"))
