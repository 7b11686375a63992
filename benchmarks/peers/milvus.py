"""Milvus Lite on the vectors and the queries of benchmarks/speed/index.py.

The index's benchmark runs this file by its path, with an interpreter that has milvus-lite and pymilvus and nothing of
ours; so it imports nothing from benchmarks.

Standard input: {"folder", "k", "lists"}. The folder holds vectors.npy (rows, D), queries.npy (Q, D) and exact_rows.npy
(Q, k), the rows of the exact answers; the collection gets `lists` inverted lists. Standard output: {"fill_seconds",
"searches": [{"recall", "seconds": one for each query}, ...]}, one entry for each of PROBED_LISTS, in that order.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from pymilvus import DataType, MilvusClient

INSERT_BATCH_SIZE = 5_000
PROBED_LISTS = (4, 8, 16, 32, 64)
"""Numbers of inverted lists that a search probes, from fast to accurate."""
COLLECTION = "notes"


def fill(client: MilvusClient, vectors: Any, lists: int) -> float:
    """Insert all vectors and build the index; return the seconds that both took."""
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    client.create_collection(COLLECTION, schema=schema)
    started = time.perf_counter()
    for begin in range(0, len(vectors), INSERT_BATCH_SIZE):
        batch = vectors[begin : begin + INSERT_BATCH_SIZE]
        client.insert(COLLECTION, [{"id": begin + i, "vector": vector} for i, vector in enumerate(batch)])
    index = client.prepare_index_params()
    index.add_index("vector", index_type="IVF_FLAT", metric_type="IP", params={"nlist": lists})
    client.flush(COLLECTION)
    client.create_index(COLLECTION, index)
    client.load_collection(COLLECTION)
    return time.perf_counter() - started


def search(client: MilvusClient, queries: Any, exact_rows: Any, k: int, probed_lists: int) -> dict[str, Any]:
    """Search for each query; return the recall against the exact rows and the seconds of each search."""
    right, seconds = 0, []
    for query, rows in zip(queries, exact_rows.tolist(), strict=True):
        started = time.perf_counter()
        (hits,) = client.search(COLLECTION, [query], limit=k, search_params={"params": {"nprobe": probed_lists}})
        seconds.append(time.perf_counter() - started)
        right += len({hit["id"] for hit in hits} & set(rows))
    return {"recall": right / exact_rows.size, "seconds": seconds}


def main() -> None:
    request = json.load(sys.stdin)
    folder = Path(request["folder"])
    vectors, queries, exact_rows = (np.load(folder / f"{name}.npy") for name in ("vectors", "queries", "exact_rows"))
    client = MilvusClient(str(folder / "milvus.db"))
    fill_seconds = fill(client, vectors, request["lists"])
    searches = [search(client, queries, exact_rows, request["k"], lists) for lists in PROBED_LISTS]
    print(json.dumps({"fill_seconds": fill_seconds, "searches": searches}))


if __name__ == "__main__":
    main()
