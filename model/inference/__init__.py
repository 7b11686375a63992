"""Inference: the engine, its scheduler, and the runtimes that compute the model."""
