"""`metier drill`: proves on the user's own cluster that an interrupted training equals an undisturbed one."""
