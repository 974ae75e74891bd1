"""The offline demo: drawings, a small CLIP teacher, and the whole path."""
