"""The online half: HTTP, Redis, the live index and the queue in front of the engine."""

from pathlib import Path

SAMPLES = Path(__file__).with_name("sample_notes.jsonl")
"""Sample notes of a first start; benchmarks measure on their texts."""
