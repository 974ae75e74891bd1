"""Which quantized file: measured, and explained."""
