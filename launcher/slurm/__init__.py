"""Slurm: what a job is asked for, its script, and what is decided inside of it."""
