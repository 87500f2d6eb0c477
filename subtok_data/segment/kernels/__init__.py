"""Compiled loops over pixels, token pairs and merges.

Only these modules import numba, and the modules of :mod:`subtok_data.segment` import them on their
first use, so that describing a partition costs no compiler.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
