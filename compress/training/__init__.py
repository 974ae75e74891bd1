"""The one training loop: steps, schedules, checkpoints, run folders."""
