"""The online service: HTTP, Redis, the live index and the queue in front of the engine."""

from pathlib import Path

SAMPLES = Path(__file__).with_name("sample_notes.jsonl")
"""Sample notes that are added on the first start; benchmarks use their texts."""
