"""The batch contract: its keys, how they are padded, and how they are checked."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
