"""Choosing rows: which images of an index, and in which order."""
