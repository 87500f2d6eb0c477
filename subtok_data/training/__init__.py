"""Labels, datasets and training of boundary models."""
