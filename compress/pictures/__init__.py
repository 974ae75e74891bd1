"""Pictures in memory or streamed, their augmented views, and batches of both."""
