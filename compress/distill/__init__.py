"""A student learns from frozen teachers."""
