"""Datasets, collation, worker pool and loader."""
