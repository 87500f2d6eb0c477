"""Thin adapters for training frameworks."""
