"""Compilation of the kernels, cached on disk where a folder allows it; types of their arguments."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["Bytes", "Flags", "Floats", "Ints", "Labels", "Longs", "Scalar", "kernel"]
Function = TypeVar("Function", bound=Callable[..., object])

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Labels = NDArray[np.signedinteger]
"""Tokens, or other regions, of pixels: int16 or int32."""
Scalar = Any
"""A Python number, or an element of an array."""
_log = logging.getLogger(__name__)


def kernel(function: Function) -> Function:
    """Compile a function on its first call, and cache the machine code on disk.

    The kernels release the GIL, so that a pool of threads scales. numba keeps the code beside the
    module, or in the user's cache folder where the package cannot be written. Where neither can be
    written it refuses to decorate at all; then the code is compiled once per process instead.

    Parameters
    ----------
    function : callable
        A function that numba can compile in nopython mode.

    Returns
    -------
    callable
        The compiled function.

    Examples
    --------
    >>> @kernel
    ... def double(x):
    ...     return 2 * x
    >>> double(21)
    42
    """
    try:
        compiled: Any = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError as error:
        _log.info("%s is compiled anew in every process: %s", function.__qualname__, error)
        return cast("Function", numba.njit(nogil=True)(function))
    # numba compares only the file of the function itself, but the kernels that it calls are built
    # into its code: after an upgrade that changes only those, it would go on running the old ones.
    entry = compiled._cache._cache_file
    entry._source_stamp = (entry._source_stamp, _all_sources())
    return cast("Function", compiled)


@functools.cache
def _all_sources() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
