"""A CLIP as two artifacts: its image and its text tower."""
