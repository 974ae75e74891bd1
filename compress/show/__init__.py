"""A run as a person sees it: terminal, pictures, TensorBoard."""
