"""Training data for segmentation made of category words: no image is read, decoded or drawn."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
