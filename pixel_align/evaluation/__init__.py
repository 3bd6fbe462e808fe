"""Metrics: pure NumPy pairs `row`, `summary`."""
