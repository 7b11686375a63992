"""How a checkpoint is made: the losses, the teachers, the training loop, and what is fitted afterwards."""
