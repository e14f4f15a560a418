"""The optimizers: which parameters each steps and how, wherever ZeRO has cut them."""
