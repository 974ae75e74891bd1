"""Activation statistics, ranges from them, and weights rounded by what layers compute."""
