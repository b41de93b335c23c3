"""Streamed sources: the same images and batches, with fewer promises."""
