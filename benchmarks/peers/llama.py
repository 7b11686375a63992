"""llama.cpp on the prompts and the model of benchmarks/speed/engine.py.

The engine's benchmark runs this file by its path, with an interpreter that has llama-cpp-python and nothing of ours; so
it imports nothing from benchmarks.

Standard input: {"gguf", "folder", "types", "prompts", "threads"}. From `gguf`, the packaged model, a file of each of
`types` is made in `folder`; `prompts` are token ids. Standard output: {type: {measurement: {batch: units a second}}}.
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

FILE_TYPES = {
    "BF16": llama.LLAMA_FTYPE_MOSTLY_BF16,
    "Q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0,
}
ROUNDS = 3
STEPS = 24
"""Decode steps of one measured call."""
HASHTAG_STEPS = 20
"""Tokens decoded greedily after a note, as its hashtags."""
CATEGORY_PROMPT, CATEGORY_STEPS = 6, 4
"""Tokens of the prompt that asks for a category, and tokens decoded as the answer."""
MAX_TOKENS = 8192
"""Tokens that the KV cache holds, of all sequences together; a batch has at most half as many."""


class Peer:
    """One model file with one context. `embedding`: whether it returns hidden states instead of logits."""

    def __init__(self, path: Path, threads: int, sequences: int, *, embedding: bool) -> None:
        self.model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
        options = llama.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = MAX_TOKENS, MAX_TOKENS // 2, 512
        options.n_seq_max = sequences
        options.n_threads = options.n_threads_batch = threads
        options.embeddings = embedding
        options.pooling_type = llama.LLAMA_POOLING_TYPE_NONE
        self.context = llama.llama_init_from_model(self.model, options)
        self.memory = llama.llama_get_memory(self.context)
        self.batch = llama.llama_batch_init(MAX_TOKENS // 2, 0, 1)

    def close(self) -> None:
        """Free batch, context and model."""
        llama.llama_batch_free(self.batch)
        llama.llama_free(self.context)
        llama.llama_model_free(self.model)

    def forward(self, parts: Sequence[tuple[int, int, Sequence[int]]]) -> None:
        """Run parts, each (sequence, first position, tokens); an output is computed for the last token of each."""
        row = 0
        for sequence, begin, tokens in parts:
            for offset, token in enumerate(tokens):
                self.batch.token[row] = token
                self.batch.pos[row] = begin + offset
                self.batch.n_seq_id[row] = 1
                self.batch.seq_id[row][0] = sequence
                self.batch.logits[row] = offset == len(tokens) - 1
                row += 1
        self.batch.n_tokens = row
        if llama.llama_decode(self.context, self.batch):
            raise RuntimeError("llama_decode failed")
        llama.llama_synchronize(self.context)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Run the prompts as new sequences."""
        llama.llama_memory_clear(self.memory, True)
        self.forward([(i, 0, prompt) for i, prompt in enumerate(prompts)])

    def decode(self, prompts: Sequence[Sequence[int]], count: int, offset: int = 0) -> None:
        """Run `count` steps of one token for each sequence, `offset` tokens after its prompt."""
        for step in range(count):
            self.forward([(i, len(prompt) + offset + step, (1,)) for i, prompt in enumerate(prompts)])

    def hashtags_and_category(self, prompts: Sequence[Sequence[int]]) -> None:
        """Prefill the prompts, decode hashtags, drop these from the KV cache, then decode a category."""
        self.prefill(prompts)
        self.decode(prompts, HASHTAG_STEPS)
        self.cut(prompts)
        self.forward([(i, len(prompt), [1] * CATEGORY_PROMPT) for i, prompt in enumerate(prompts)])
        self.decode(prompts, CATEGORY_STEPS - 1, CATEGORY_PROMPT)

    def decode_and_cut(self, prompts: Sequence[Sequence[int]]) -> None:
        """Run STEPS decode steps and drop them from the cache, so that the next call begins at the same length."""
        self.decode(prompts, STEPS)
        self.cut(prompts)

    def cut(self, prompts: Sequence[Sequence[int]]) -> None:
        """Drop everything after each prompt from the KV cache."""
        for i, prompt in enumerate(prompts):
            llama.llama_memory_seq_rm(self.memory, i, len(prompt), -1)


def median_rate(units: int, call: Callable[..., None], *arguments: Any) -> float:
    """Return units per second: the median of ROUNDS calls, after one call to warm up."""
    call(*arguments)
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        call(*arguments)
        seconds.append(time.perf_counter() - started)
    return units / statistics.median(seconds)


def measure(path: Path, prompts: Sequence[Sequence[int]], threads: int) -> dict[str, dict[int, float]]:
    """Measure rates by batch size: prefill, decode, and the whole job of vector, hashtags and category."""
    batches = (1, 8, len(prompts))
    embedder = Peer(path, threads, len(prompts), embedding=True)
    prefill = {batch: median_rate(batch, embedder.prefill, prompts[:batch]) for batch in batches}
    embedder.close()
    writer = Peer(path, threads, len(prompts), embedding=False)
    decode = {}
    for batch in (1, len(prompts)):
        writer.prefill(prompts[:batch])
        decode[batch] = median_rate(batch * STEPS, writer.decode_and_cut, prompts[:batch])
    written = {batch: median_rate(batch, writer.hashtags_and_category, prompts[:batch]) for batch in batches}
    writer.close()
    job = {batch: 1 / (1 / prefill[batch] + 1 / written[batch]) for batch in batches}
    return {"prefill": prefill, "decode": decode, "job": job}


def quantise(gguf: Path, folder: Path, file_type: str) -> Path:
    """Return a file of `gguf`'s weights in `file_type`, made at the first call. RuntimeError if that fails."""
    path = folder / f"{gguf.stem}.{file_type}.gguf"
    if not path.exists():
        options = llama.llama_model_quantize_default_params()
        options.ftype, options.allow_requantize, options.nthread = FILE_TYPES[file_type], True, 2
        part = path.with_suffix(".part")  # renamed once it is whole
        if llama.llama_model_quantize(str(gguf).encode(), str(part).encode(), ctypes.byref(options)):
            raise RuntimeError(f"cannot convert {gguf} to {file_type}")
        part.rename(path)
    return path


def discard(level: int, text: bytes, data: Any) -> None:
    """Drop a message of llama.cpp's log, which would fill standard error."""


def main() -> None:
    request = json.load(sys.stdin)
    callback = llama.llama_log_callback(discard)  # kept alive to the end: llama.cpp stores only its address
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    llama.llama_backend_init()
    rates = {}
    for file_type in request["types"]:
        path = quantise(Path(request["gguf"]), Path(request["folder"]), file_type)
        rates[file_type] = measure(path, request["prompts"], request["threads"])
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
