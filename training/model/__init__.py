"""The model: where it comes from, how packed documents go through it, what it costs."""
