"""Measure on Apple hardware through coremltools. Written against coremltools 9.0's sources; not yet run on a Mac."""
