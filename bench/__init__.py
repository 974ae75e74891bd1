"""Latency and accuracy of the teacher, the student and every artifact, side by side."""
