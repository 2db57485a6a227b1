"""Timings on the user's machine, beside those of other implementations."""
