"""Make a trained student smaller or fit for 8 bits, and distil it to recover."""
