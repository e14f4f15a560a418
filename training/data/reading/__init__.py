"""From shards, wherever they lie, to this rank's batches."""
