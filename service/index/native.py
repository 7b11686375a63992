"""Low-level calls: FAISS through its SWIG wrappers, and the C library's heap.

FAISS gets raw addresses of arrays here, which therefore must be contiguous and of the right dtype.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from service.index.bitmaps import Bits, RowNumbers
from service.records import Vector, Vectors

swig: Any = faiss
"""FAISS without its type stubs, which describe the C++ classes and not the Python ones around them."""
FaissIndex = Any
Scores = npt.NDArray[np.float32]
"""(n,): inner products, highest first."""
RankedRows = tuple[Scores, RowNumbers]
"""Scores and row numbers of the rows that a search found, best first."""
NUMBERS_PER_CODE, CODE_BITS = 2, 4
"""Numbers of a vector that share a code, and the bits of a code: a sixteenth of float32."""
CODE_TRAINING_ROUNDS = 10
"""Rounds of k-means for the values of a code."""


def use_one_faiss_thread() -> None:
    """Have FAISS compute in the calling thread alone from now on: OpenMP threads would busy-wait for each other."""
    faiss.omp_set_num_threads(1)


def trim_heap() -> None:
    """Return freed memory to the system; glibc would keep it for later allocations."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def exact_search(vectors: Vectors, query: Vector, k: int, rows: Bits | None = None) -> RankedRows:
    """Compare `query` (D,) with all of `vectors` (N, D), or with the given rows alone, and return the `k` best, fewer
    where there are fewer.

    FAISS computes the inner products: the threads of NumPy's BLAS busy-wait (docs/decisions/0011-segments.md). Raises
    ValueError where the dimensions differ.
    """
    base = np.ascontiguousarray(vectors)
    query = np.ascontiguousarray(query, np.float32)
    count, dimension = base.shape
    if query.shape != (dimension,):
        raise ValueError(f"a query of shape {query.shape} cannot be compared with vectors of dimension {dimension}")
    scores, places = np.empty(k, np.float32), np.empty(k, np.int64)
    selector = () if rows is None else (row_selector(rows),)
    swig.knn_inner_product(
        swig.swig_ptr(query),
        swig.swig_ptr(base),
        dimension,
        1,
        count,
        k,
        swig.swig_ptr(scores),
        swig.swig_ptr(places),
        *selector,
    )
    return without_padding(scores, places)


def search_index(index: FaissIndex, query: Vector, k: int, lists: int, rows: Bits | None) -> RankedRows:
    """Search a FAISS index for the `k` nearest to `query` (D,) among `rows` (None: all), in `lists` inverted lists (0:
    the index has none)."""
    selector = None if rows is None else row_selector(rows)
    parameters = swig.SearchParameters(sel=selector)
    if lists:
        parameters = swig.SearchParametersIVF(sel=selector, nprobe=lists)
    scores, labels = index.search(np.asarray(query, np.float32)[None], k, params=parameters)
    return without_padding(scores[0], labels[0])


def search_lists(ivf: FaissIndex, queries: Vectors, k: int, lists: int) -> RowNumbers:
    """Return the row numbers of the `k` nearest to each query in `lists` inverted lists, shape (queries, k)."""
    rows: RowNumbers = ivf.search(queries, k, params=swig.SearchParametersIVF(nprobe=lists))[1]
    return rows


def row_selector(rows: Bits) -> Any:
    """Return FAISS's filter on the rows of a bitmap. It refers to the bitmap, which must outlive the search."""
    return swig.IDSelectorBitmap(rows)


def without_padding(scores: Scores, rows: RowNumbers) -> RankedRows:
    """Drop the row numbers -1 with which FAISS fills up the end of a result that has too few rows."""
    if len(rows) and rows[-1] < 0:
        count = int(np.count_nonzero(rows >= 0))
        return scores[:count], rows[:count]
    return scores, rows


def flat_index(dimension: int) -> FaissIndex:
    """Return an empty index that compares a query with every row."""
    return swig.IndexFlatIP(dimension)


def preallocated_flat_index(capacity: int, dimension: int) -> tuple[FaissIndex, Vectors]:
    """Return an empty flat index, and its memory (capacity, dimension), where it expects the vectors of the rows below
    its `ntotal`.

    FAISS's own `add` reallocates that memory, which is unsafe during a search. Here it never moves: write a row, then
    raise `ntotal`.
    """
    index = swig.IndexFlatIP(dimension)
    size = capacity * index.code_size
    index.codes.resize(size)
    memory = swig.rev_swig_ptr(index.codes.data(), size)
    vectors: Vectors = memory.view(np.float32).reshape(capacity, dimension)
    return index, vectors


def trained_ivf(sample: Vectors, lists: int) -> FaissIndex:
    """Return an empty inverted file (IVF-Flat, inner product) whose centroids are trained on `sample` (N, D)."""
    dimension = sample.shape[1]
    index = swig.IndexIVFFlat(flat_index(dimension), dimension, lists, swig.METRIC_INNER_PRODUCT)
    index.cp.spherical = True
    index.train(sample)
    return index


def trained_codes(ivf: FaissIndex, sample: Vectors) -> FaissIndex | None:
    """Return an empty index with the lists of an inverted file, whose rows are codes of CODE_BITS bits for each pair of
    numbers (product quantisation, Jegou et al. 2011), trained on `sample` (N, D). None for an odd dimension."""
    if ivf.d % NUMBERS_PER_CODE:
        return None
    codes = swig.IndexIVFPQ(
        ivf.quantizer, ivf.d, ivf.nlist, ivf.d // NUMBERS_PER_CODE, CODE_BITS, swig.METRIC_INNER_PRODUCT
    )
    codes.by_residual = False  # one table of products for all lists of a search
    codes.pq.cp.niter = CODE_TRAINING_ROUNDS
    codes.pq.train(np.ascontiguousarray(sample))
    codes.is_trained = True
    codes.referenced_objects = [ivf]  # which owns the centroids
    return codes


def fast_scan(codes: FaissIndex) -> FaissIndex:
    """Return an index with the rows of `trained_codes`, in the layout in which a processor compares 32 at once (Andre
    et al. 2015)."""
    packed = swig.IndexIVFPQFastScan(codes)
    packed.orig_invlists = None
    packed.referenced_objects = codes.referenced_objects  # and not `codes`, so that its memory is freed
    return packed


def nearest_lists(ivf: FaissIndex, vectors: Vectors, count: int) -> RowNumbers:
    """Return the `count` inverted lists that a search for each vector goes through first, nearest first, shape (N,
    count). The first one is the list of the vector itself."""
    lists: RowNumbers = ivf.quantizer.search(vectors, count)[1]
    return lists


def lists_of_rows(ivf: FaissIndex, rows: RowNumbers) -> RowNumbers:
    """Return the inverted list of each row of an inverted file that has a direct map, in the shape of `rows`."""
    places: RowNumbers = swig.vector_to_array(ivf.direct_map.array)
    return places[rows] >> 32  # FAISS keeps the place in the list in the lower half


def reserve_lists(ivf: FaissIndex, rows_in_list: Sequence[int]) -> None:
    """Allocate each inverted list at its final size: one that grows row by row has up to twice the memory it needs."""
    for number, rows in enumerate(rows_in_list):
        ivf.invlists.resize(number, rows)
        ivf.invlists.resize(number, 0)


def add_to_lists(ivf: FaissIndex, vectors: Vectors, row_numbers: RowNumbers, lists: RowNumbers) -> None:
    """Append vectors (N, D) under their row numbers (N,) to their lists (N,)."""
    base = np.ascontiguousarray(vectors)
    ivf.add_core(len(base), swig.swig_ptr(base), swig.swig_ptr(row_numbers), swig.swig_ptr(lists))


def with_default_lists(ivf: FaissIndex, lists: int) -> FaissIndex:
    """Return a second index on the same inverted lists, which by default searches `lists` of them."""
    if isinstance(ivf, swig.IndexIVFPQFastScan):
        view = swig.IndexIVFPQFastScan(
            ivf.quantizer, ivf.d, ivf.nlist, ivf.pq.M, ivf.pq.nbits, ivf.metric_type, ivf.bbs
        )
        view.by_residual, view.pq, view.is_trained = ivf.by_residual, ivf.pq, True
    else:
        view = swig.IndexIVFFlat(ivf.quantizer, ivf.d, ivf.nlist, ivf.metric_type)
    view.replace_invlists(ivf.invlists, False)
    view.ntotal, view.nprobe = ivf.ntotal, lists
    return view


def concatenated(indexes: Sequence[FaissIndex]) -> FaissIndex:
    """Return one index over all rows of several indexes, numbered one index after the other."""
    shards = swig.IndexShards(indexes[0].d, False, True)
    for index in indexes:
        shards.add_shard(index)
    return shards


def serialize_index(index: FaissIndex) -> npt.NDArray[np.uint8]:
    """Return an index in FAISS's own format."""
    serialized: npt.NDArray[np.uint8] = swig.serialize_index(index)
    return serialized


def read_index(serialized: npt.NDArray[np.uint8]) -> FaissIndex:
    """Return the index that `serialize_index` wrote. Its vectors stay in `serialized`, which lives as long as the index
    does: copying a million of them takes a second."""
    index = swig.read_index(swig.ZeroCopyIOReader(swig.swig_ptr(serialized), serialized.size))
    index.referenced_objects = [serialized]
    return index


def copied_index(serialized: npt.NDArray[np.uint8]) -> FaissIndex:
    """Return a copy of the index that `serialize_index` wrote. It is read piece by piece: `deserialize_index` would
    copy all of it once more."""
    position = 0

    def read(size: int) -> bytes:
        nonlocal position
        position += size
        return serialized[position - size : position].tobytes()

    return swig.read_index(swig.PyCallbackIOReader(read))
