"""What an artifact really is, whoever made it."""
