"""How tensors lie in a checkpoint: in pieces that any number of ranks can put together again."""
