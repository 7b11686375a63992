"""Benchmarks of speed and quality, run from the repository's root, for example `python -m benchmarks.speed.engine`.

Results are JSON files under results/; harness/report.py turns these files into the tables of
docs/benchmarks.md.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""Folder of the repository."""
