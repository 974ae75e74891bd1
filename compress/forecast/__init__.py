"""Where a run's curve is going."""
