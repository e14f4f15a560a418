"""A look at the nodes before a run: devices, disks, clocks, versions, the network between them."""
