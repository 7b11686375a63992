"""Measures speed and quality; each script writes one JSON under results/."""
