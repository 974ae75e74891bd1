"""An interpreter of Core ML packages, for machines without a Mac."""
