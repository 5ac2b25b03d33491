"""The model: its families, weights, forward and sampling."""
