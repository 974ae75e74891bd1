"""Image search with an exported CLIP."""
