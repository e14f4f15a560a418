"""`metier audit`: what a prepared corpus would teach; also the gate of `metier train`."""
