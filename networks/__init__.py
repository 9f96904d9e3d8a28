"""Torch modules of our own, and networks rebuilt from strangers' weights."""
