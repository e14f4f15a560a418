"""`metier scale`: the same training at several sizes, and what more devices are worth."""
