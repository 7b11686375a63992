"""Measuring a checkpoint, or another system, on notes that training did not see."""
