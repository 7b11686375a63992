"""Text and tensors. Knows no HTTP and no database."""
