"""Measure in a browser: a page on the local network, the models sent to it, its answers brought back."""
