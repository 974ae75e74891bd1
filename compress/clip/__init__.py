"""CLIP from scratch: image-text contrastive training."""
