"""How a checkpoint is measured."""
