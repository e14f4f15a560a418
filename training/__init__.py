"""Runs on the compute nodes: data, model, engine, loop, checkpoint, metrics."""
