"""Rules across settings: pure functions, called on the login node and by every rank alike."""
