"""Ways of reading the same objects: ours, the bounds, the rivals. One technology a file."""
