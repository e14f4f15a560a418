"""What the launcher says to Slurm, and what it asks it."""
