"""Students, teachers and the checkpoint format."""
