"""Readers of file formats: each yields rows, with a place for every one, in bounded memory."""
