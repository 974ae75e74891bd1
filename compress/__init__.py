"""Distillation: the training loop, its tasks, losses and recipes."""
