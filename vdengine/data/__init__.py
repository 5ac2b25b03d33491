"""Data from outside, as trees in packs."""
