"""Example bodies that GET /docs prefills in "Try it out": a service with its sample notes accepts each.

Swagger UI otherwise fills in every field of a schema, even those of which a request may have only one.
"""

from __future__ import annotations

from typing import Any

TEXT = {
    "title": "Three days in Kyoto on a small budget",
    "content": "Buses all day for 700 yen, temples before eight.",
}
EXAMPLES: dict[tuple[str, str], Any] = {
    ("post", "/notes"): {"id": "kyoto-1", **TEXT, "hashtags": ["kyoto", "budget travel"], "author": "tomhikes"},
    ("put", "/notes/{note_id}"): {**TEXT, "hashtags": ["kyoto"], "category": "Travel"},
    ("patch", "/notes/{note_id}"): {"category": "Travel"},
    ("post", "/notes/delete"): {"ids": ["sample-en-001"], "dry_run": True},
    ("post", "/similar"): {**TEXT, "k": 3},
    ("post", "/similar/batch"): [{**TEXT, "k": 3}, {"positive": [{"note_id": "sample-en-001"}], "k": 3}],
    ("post", "/notes/{note_id}/similar"): {"negative": [{"note_id": "sample-en-002"}], "k": 3, "diversity": 0.3},
    ("post", "/events"): {"event_id": "e-1", "type": "click", "note_id": "sample-en-001", "user": "u-4711"},
    ("post", "/v1/embeddings"): {"input": [TEXT["content"]], "model": "notellm-generalist"},
}
"""JSON bodies by method and path. The model of embeddings is the shipped checkpoint."""
