"""Partition of an image into tokens: numpy and numba only, no torch."""
