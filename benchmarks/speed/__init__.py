"""How fast it is, side by side with a yardstick in the same run."""
