"""Milvus Lite's part of benchmarks/speed/index.py, which runs it with an interpreter that has milvus-lite and pymilvus.

Reads {"folder", "k", "lists"} from standard input: in the folder are vectors.npy (rows, D), queries.npy (Q, D) and
best.npy (Q, k), the rows of the exact answers; the collection has as many `lists`. Prints for each number of lists that
are looked through {"recall", "seconds": of each search}, and the seconds that filling took.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from pymilvus import DataType, MilvusClient

BATCH = 5_000
LOOKED_THROUGH = (4, 8, 16, 32, 64)
NAME = "notes"


def filled(client: MilvusClient, vectors: Any, lists: int) -> float:
    """Seconds until all are there and the index is made."""
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    client.create_collection(NAME, schema=schema)
    began = time.perf_counter()
    for begin in range(0, len(vectors), BATCH):
        some = vectors[begin : begin + BATCH]
        client.insert(NAME, [{"id": begin + i, "vector": vector} for i, vector in enumerate(some)])
    index = client.prepare_index_params()
    index.add_index("vector", index_type="IVF_FLAT", metric_type="IP", params={"nlist": lists})
    client.flush(NAME)
    client.create_index(NAME, index)
    client.load_collection(NAME)
    return time.perf_counter() - began


def searched(client: MilvusClient, queries: Any, best: Any, k: int, looked_through: int) -> dict[str, Any]:
    found, seconds = 0, []
    for query, wanted in zip(queries, best.tolist(), strict=True):
        began = time.perf_counter()
        (hits,) = client.search(NAME, [query], limit=k, search_params={"params": {"nprobe": looked_through}})
        seconds.append(time.perf_counter() - began)
        found += len({hit["id"] for hit in hits} & set(wanted))
    return {"recall": found / best.size, "seconds": seconds}


def main() -> None:
    asked = json.load(sys.stdin)
    folder = Path(asked["folder"])
    vectors, queries, best = (np.load(folder / f"{name}.npy") for name in ("vectors", "queries", "best"))
    client = MilvusClient(str(folder / "milvus.db"))
    told: dict[str, Any] = {"filled": filled(client, vectors, asked["lists"])}
    for looked_through in LOOKED_THROUGH:
        told[str(looked_through)] = searched(client, queries, best, asked["k"], looked_through)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
