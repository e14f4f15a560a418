"""Runs on the login node: what to run, where, will it fit, what went wrong. Imports no torch."""
