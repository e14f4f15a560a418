"""Who is at what: hearts that ranks beat, and the helper that reads them and ends a run that hangs."""
