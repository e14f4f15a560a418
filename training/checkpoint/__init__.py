"""Checkpoints: complete or absent, whatever dies while they are written."""
