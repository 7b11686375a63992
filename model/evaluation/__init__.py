"""Evaluation of a checkpoint, or of another system, on notes held out from training."""
