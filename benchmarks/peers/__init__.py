"""Other programs that do a part of this, run for comparison."""
