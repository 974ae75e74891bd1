"""The teacher store: what the teacher said of stored views of every picture, written once, read by memory maps."""
