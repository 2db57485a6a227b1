"""Pretraining methods. A method holds networks and computes a loss; it knows no optimiser and no data."""
