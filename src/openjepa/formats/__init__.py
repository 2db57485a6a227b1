"""Checkpoint formats of others: pure maps between their names and ours."""
