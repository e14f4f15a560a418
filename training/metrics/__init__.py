"""What is measured while training: the journal, the events, the screen, and W&B behind a helper process."""
