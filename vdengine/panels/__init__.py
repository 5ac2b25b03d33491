"""Panels of value questions: reading, checking and importing them."""
