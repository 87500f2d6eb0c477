"""Subobject tokens for vision-language models, as a PyTorch data loader.

The public names are imported on first use, so that ``subtok_data.segment``, which runs in worker
processes, starts without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0.dev0"
