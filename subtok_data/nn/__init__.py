"""Modules that turn a batch into what a language model reads: features, tokens, one sequence."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
