"""Faults of jobs, provoked on the test cluster."""

CASES = []
