"""From documents to the right tokens on every rank."""
