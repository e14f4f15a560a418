"""DeepSpeed, behind the three things that the loop and the checkpoints ask of it."""
