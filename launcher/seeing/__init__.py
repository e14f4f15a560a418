"""What a run is at, read from its files and from Slurm, without touching it."""
