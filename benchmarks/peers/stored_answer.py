"""A server whose one endpoint returns a stored JSON document: a lower bound of what any answer over HTTP costs.

python -m benchmarks.peers.stored_answer PORT < ANSWER

benchmarks.speed.similar runs it as a process of its own.
"""

from __future__ import annotations

import gc
import sys

import orjson
import uvicorn
from fastapi import FastAPI, Response

PATH = "/stored"


def serve(port: int, answer: bytes) -> None:
    """Serve `answer`, serialised anew for each request, as a cache in front of a service would."""
    app, document = FastAPI(), orjson.loads(answer)

    @app.get(PATH)
    async def stored() -> Response:
        return Response(orjson.dumps(document), media_type="application/json")

    gc.freeze()  # as the service does
    uvicorn.run(app, port=port, log_level="error", access_log=False)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.stdin.buffer.read())
