"""Data: reading sources, tokenising their rows as trees, and batching the trees in packs."""
