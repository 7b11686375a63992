"""What a checkpoint is compared with."""
