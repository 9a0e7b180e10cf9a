"""Does: loads modules, runs them, coordinates requests."""
