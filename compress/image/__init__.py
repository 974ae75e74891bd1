"""Image classifiers on labels alone; their result is also a teacher."""
