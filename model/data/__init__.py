"""From clicks and notes to training examples."""
