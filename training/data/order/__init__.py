"""Which documents share a row, and which row comes when: arithmetic on lengths, a seed and a position."""
