"""Text classifiers as artifacts."""
