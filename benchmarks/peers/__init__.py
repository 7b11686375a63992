"""Other programs that do part of the same job, run beside ours for comparison."""
