"""`metier checkpoints`: what a run has on the disk. Imports no torch, so that it answers at once."""
