"""Parallelism, applied from outside to plain networks."""
