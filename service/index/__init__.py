"""The live index: derived from the store and its change log, and can be rebuilt from them at any time."""
