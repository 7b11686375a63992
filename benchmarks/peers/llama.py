"""llama.cpp's part of benchmarks/speed/engine.py, which runs it with an interpreter that has llama-cpp-python.

Reads {"gguf", "folder", "types", "prompts", "threads"} from standard input, prints {type: {what: {batch: units a
second}}}. Of `gguf`, the packaged model, a file of each of `types` is made in `folder`; `prompts` are token ids.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp as llama

TYPES = {
    "BF16": llama.LLAMA_FTYPE_MOSTLY_BF16,
    "Q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0,
}
ROUNDS = 3
STEPS = 24
HASHTAG_STEPS, CATEGORY_TASK, CATEGORY_STEPS = 20, 6, 4
"""Of a whole job: what is written after a note, and the tokens that ask for its category."""
MOST_TOKENS = 8192


class Peer:
    """One file, one context. `embedding`: whether it gives states or logits."""

    def __init__(self, path: Path, threads: int, sequences: int, *, embedding: bool) -> None:
        self.model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
        options = llama.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = MOST_TOKENS, MOST_TOKENS // 2, 512
        options.n_seq_max = sequences
        options.n_threads = options.n_threads_batch = threads
        options.embeddings = embedding
        options.pooling_type = llama.LLAMA_POOLING_TYPE_NONE
        self.context = llama.llama_init_from_model(self.model, options)
        self.memory = llama.llama_get_memory(self.context)
        self.batch = llama.llama_batch_init(MOST_TOKENS // 2, 0, 1)

    def close(self) -> None:
        llama.llama_batch_free(self.batch)
        llama.llama_free(self.context)
        llama.llama_model_free(self.model)

    def read(self, rows: Sequence[tuple[int, int, Sequence[int]]]) -> None:
        """(sequence, position, tokens) of each; something is told after each one's last."""
        at = 0
        for sequence, begins, tokens in rows:
            for place, token in enumerate(tokens):
                self.batch.token[at] = token
                self.batch.pos[at] = begins + place
                self.batch.n_seq_id[at] = 1
                self.batch.seq_id[at][0] = sequence
                self.batch.logits[at] = place == len(tokens) - 1
                at += 1
        self.batch.n_tokens = at
        if llama.llama_decode(self.context, self.batch):
            raise RuntimeError("llama_decode failed")
        llama.llama_synchronize(self.context)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        llama.llama_memory_clear(self.memory, True)
        self.read([(i, 0, prompt) for i, prompt in enumerate(prompts)])

    def steps(self, prompts: Sequence[Sequence[int]], count: int, behind: int = 0) -> None:
        """So many single tokens after each, `behind` others."""
        for step in range(count):
            self.read([(i, len(prompt) + behind + step, (1,)) for i, prompt in enumerate(prompts)])

    def write(self, prompts: Sequence[Sequence[int]]) -> None:
        """Hashtags, and from the same cache the category: what is left of three calls when prompts are cached."""
        self.prefill(prompts)
        self.steps(prompts, HASHTAG_STEPS)
        for i, prompt in enumerate(prompts):
            llama.llama_memory_seq_rm(self.memory, i, len(prompt), -1)
        self.read([(i, len(prompt), [1] * CATEGORY_TASK) for i, prompt in enumerate(prompts)])
        self.steps(prompts, CATEGORY_STEPS - 1, CATEGORY_TASK)


def median(units: int, work: Callable[..., None], *arguments: Any) -> float:
    work(*arguments)
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work(*arguments)
        seconds.append(time.perf_counter() - started)
    return units / statistics.median(seconds)


def measured(path: Path, prompts: Sequence[Sequence[int]], threads: int) -> dict[str, dict[int, float]]:
    batches = (1, 8, len(prompts))
    reader = Peer(path, threads, len(prompts), embedding=True)
    prefill = {batch: median(batch, reader.prefill, prompts[:batch]) for batch in batches}
    reader.close()
    writer = Peer(path, threads, len(prompts), embedding=False)
    decode = {}
    for batch in (1, len(prompts)):
        writer.prefill(prompts[:batch])
        decode[batch] = median(batch * STEPS, again, writer, prompts[:batch])
    written = {batch: median(batch, writer.write, prompts[:batch]) for batch in batches}
    writer.close()
    job = {batch: 1 / (1 / prefill[batch] + 1 / written[batch]) for batch in batches}
    return {"prefill": prefill, "decode": decode, "job": job}


def again(writer: Peer, prompts: Sequence[Sequence[int]]) -> None:
    """Single steps, which are forgotten afterwards."""
    writer.steps(prompts, STEPS)
    for i, prompt in enumerate(prompts):
        llama.llama_memory_seq_rm(writer.memory, i, len(prompt), -1)


def quantised(gguf: Path, folder: Path, kind: str) -> Path:
    path = folder / f"{gguf.stem}.{kind}.gguf"
    if not path.exists():
        options = llama.llama_model_quantize_default_params()
        options.ftype, options.allow_requantize, options.nthread = TYPES[kind], True, 2
        if llama.llama_model_quantize(str(gguf).encode(), str(path).encode(), ctypes.byref(options)):
            raise RuntimeError(f"no {kind} could be made of {gguf}")
    return path


@llama.llama_log_callback
def silent(level: int, text: bytes, data: Any) -> None:
    """llama.cpp tells much on standard error."""


def main() -> None:
    asked = json.load(sys.stdin)
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    told = {}
    for kind in asked["types"]:
        path = quantised(Path(asked["gguf"]), Path(asked["folder"]), kind)
        told[kind] = measured(path, asked["prompts"], asked["threads"])
    print(json.dumps(told))


if __name__ == "__main__":
    main()
