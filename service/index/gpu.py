"""Gpu: copies of sealed segments on a graphics card, where FAISS is built for one and the machine has one.

Snapshots, merges and comparisons row by row stay on the CPU. FAISS allows one thread at a time on a card, also for
freeing its memory (FAISS wiki, "Threads and asynchronous calls"). So only Gpu refers to the FAISS indexes that use the
card, and touches them under its lock. All other code has a GpuIndex; once no reference to it is left, the next thread
that takes the lock frees the FAISS index behind it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from threading import Lock
from typing import Any

import numpy.typing as npt
import structlog

from service.index.native import FaissIndex, concatenated, swig

MAX_GPU_LISTS = 2048
"""Inverted lists that FAISS can search on a card: its kernels' limit on `nprobe`."""
MAX_GPU_K = 2048
"""Rows that FAISS can select on a card: the limit of its kernels (faiss issue 2103)."""
log = structlog.get_logger(__name__)


class GpuIndex:
    """Handle of a FAISS index on the card, which is kept as long as there is a reference to this object."""

    def __init__(self, gpu: Gpu, number: int) -> None:
        self._gpu = gpu
        self._number = number

    def search(self, queries: npt.NDArray[Any], k: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return scores and row numbers (queries, k), as FAISS does. Waits for other searches on the card."""
        return self._gpu.search(self._number, queries, k)


class Gpu:
    """The first card of the machine."""

    def __init__(self) -> None:
        self._resources = swig.StandardGpuResources()
        self._lock = Lock()
        self._numbers = count()
        self._indexes: dict[int, FaissIndex] = {}
        """FAISS indexes by the numbers of their GpuIndex. Nothing else refers to them, so that removing one frees
        it."""
        self._unneeded: list[int] = []
        """Numbers of GpuIndex objects that were garbage-collected. Appended to without the lock, since the garbage
        collector may do it."""

    def copy(self, index: FaissIndex, lists: int) -> GpuIndex | None:
        """Copy an inverted file to the card, to be searched in `lists` lists; None where the card has no room."""
        with self._exclusive():
            try:
                copied = swig.index_cpu_to_gpu(self._resources, 0, index)
            except RuntimeError as error:
                log.warning("gpu_copy_failed", rows=index.ntotal, detail=f"these rows are searched on the CPU: {error}")
                return None
            copied.nprobe = min(lists, MAX_GPU_LISTS)
            return self._register(copied)

    def concatenate(self, indexes: Sequence[FaissIndex | GpuIndex]) -> GpuIndex:
        """Return one index over the rows of several, numbered one index after the other; FAISS indexes on the CPU may
        be among them."""
        with self._exclusive():
            on_card = [self._indexes[i._number] if isinstance(i, GpuIndex) else i for i in indexes]
            return self._register(concatenated(on_card))

    def search(self, number: int, queries: npt.NDArray[Any], k: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Search the index with this number. Only GpuIndex calls this."""
        with self._exclusive():
            scores, rows = self._indexes[number].search(queries, k)
            return scores, rows

    def _register(self, index: FaissIndex) -> GpuIndex:
        number = next(self._numbers)
        self._indexes[number] = index
        handle = GpuIndex(self, number)
        weakref.finalize(handle, self._unneeded.append, number).atexit = False
        return handle

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the card's lock; before the block runs, free the indexes that nothing refers to any more."""
        with self._lock:
            while self._unneeded:
                del self._indexes[self._unneeded.pop()]
            yield


def find_gpu() -> Gpu | None:
    """Return the card, or None with a warning where FAISS has none."""
    if swig.get_num_gpus():
        return Gpu()
    log.warning("no_gpu", detail="FAISS finds no GPU: the index is searched on the CPU")
    return None
