"""The type of options that are counts, for the modules that are run as commands."""

from __future__ import annotations

import argparse


def at_least_one(text: str) -> int:
    """Return the whole number, at least 1, that an option's `text` gives; raise argparse.ArgumentTypeError for any
    other text, so that the parser names the option."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number
