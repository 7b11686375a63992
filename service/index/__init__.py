"""The live index: derived from the change log, rebuilt at any time."""
