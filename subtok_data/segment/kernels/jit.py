"""How the loops are compiled: without the GIL, and kept on disk where a folder allows it."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

__all__ = ["Scalar", "kernel"]
Function = TypeVar("Function", bound=Callable[..., object])

# What a kernel takes as a number: a Python number, or an element of an array.
Scalar = Any
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
