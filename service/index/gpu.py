"""Gpu: sealed segments on a graphics card, where FAISS is built for one and the machine has one.

A card has copies: snapshots, merges and what is compared row by row stay with the processor. FAISS lets one thread at a
time use a card, also to free memory there (its wiki, "Threads and asynchronous calls"), so that a search takes its
turn, and frees what is not needed any more.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from threading import Lock
from typing import Any

import structlog

from service.index.segment import swig

MAX_GPU_LISTS = 2048
"""That a card can look through."""
log = structlog.get_logger(__name__)


class Gpu:
    """The first card."""

    def __init__(self) -> None:
        self._resources = swig.StandardGpuResources()
        self._lock = Lock()
        self._numbers = count()
        self._copies: dict[int, Any] = {}
        self._unneeded: list[int] = []

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """For whoever searches."""
        with self._lock:
            for number in self._unneeded.copy():
                if sys.getrefcount(self._copies[number]) == 2:  # this one and the question's: nobody else lets it go
                    self._unneeded.remove(number)
                    del self._copies[number]
            yield

    def copy(self, index: Any, lists: int, owner: object) -> Any:
        """Of an inverted file, of which so many lists are looked through, for as long as there is `owner`; None where
        there is no room."""
        with self.exclusive():
            try:
                copied = swig.index_cpu_to_gpu(self._resources, 0, index)
            except RuntimeError as error:
                log.warning("gpu_copy_failed", rows=index.ntotal, detail=f"searched by the processor: {error}")
                return None
            copied.nprobe = min(lists, MAX_GPU_LISTS)
            number = next(self._numbers)
            self._copies[number] = copied
        weakref.finalize(owner, self._unneeded.append, number).atexit = False
        return copied


def find_gpu() -> Gpu | None:
    """None where there is none."""
    if swig.get_num_gpus():
        return Gpu()
    log.warning("no_gpu", detail="FAISS has none here: the index is searched by the processor")
    return None
