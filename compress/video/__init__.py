"""Clips in place of pictures."""
