"""A prepared corpus: its shards and manifest, and how `metier prepare` makes them."""
