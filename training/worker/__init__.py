"""The process that trains, one per device: run.json -> parts -> loop -> exit code."""
