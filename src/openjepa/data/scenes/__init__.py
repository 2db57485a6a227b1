"""`scenes`: a data set that the project renders itself, the same on every machine."""
