"""Training a checkpoint: the losses, the teachers, the training loop, and what is fitted to the finished model."""
