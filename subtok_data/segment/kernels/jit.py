"""Compilation of the kernels, cached on disk where a folder allows it; types of their arguments."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numba.core.config
import numpy as np
from numba.core.registry import cpu_target
from numpy.typing import NDArray

from subtok_data.segment.kernels.cache import (
    CodeFiles,
    compile_in_turn,
    private_temporary_folder,
)

__all__ = [
    "Bytes",
    "Flags",
    "Floats",
    "Ints",
    "Labels",
    "Longs",
    "Scalar",
    "Words",
    "allocating_kernel",
    "inner_kernel",
    "kernel",
]

Function = TypeVar("Function", bound=Callable[..., object])

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Words = NDArray[np.uint64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Labels = NDArray[np.signedinteger]
"""Tokens, or other regions, of pixels: int16 or int32."""
Scalar = Any
"""A Python number, or an element of an array."""
_log = logging.getLogger(__name__)

# A private option, which a later numba may drop: then it only takes longer.
_UNCOUNTED: dict[str, Any] = (
    {"_nrt": False} if hasattr(cast("Any", cpu_target).options, "_nrt") else {}
)


def kernel(function: Function) -> Function:
    """Compile a loop on its first call, and cache the machine code on disk.

    It is given all memory that it needs, and returns a number or nothing: numpy's own functions
    cost the compiler more than the loops themselves. It runs without counting references to its
    arrays, which its caller holds; numba counts each array that is taken out of a named tuple, in
    one atomic step up and one down, which took half of the time of all merging.

    The kernels release the GIL, so that a pool of threads scales. The code is kept beside the
    module, or in the user's cache folder where the package cannot be written, or else in a
    temporary folder of the user's own. Where nothing can be written it is compiled once per
    process. A damaged file is compiled anew; other versions of the package have other files. Of
    several processes that need the same code one compiles, while the others wait for it.

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
    return _compile(function, _UNCOUNTED)


def allocating_kernel(function: Function) -> Function:
    """Compile a function that allocates arrays, or calls one that does; else as :func:`kernel`.

    Parameters
    ----------
    function : callable
        A function that numba can compile in nopython mode.

    Returns
    -------
    callable
        The compiled function.
    """
    return _compile(function, {})


def inner_kernel(function: Function) -> Function:
    """Compile a function that only kernels call, as a part of them.

    It has no code of its own on disk, and none to call it from Python.

    Parameters
    ----------
    function : callable
        As for :func:`kernel`.

    Returns
    -------
    callable
        What a kernel calls.
    """
    options: dict[str, Any] = {
        "nogil": True,
        "no_cfunc_wrapper": True,
        "no_cpython_wrapper": True,
        **_UNCOUNTED,
    }
    return cast("Function", numba.njit(**options)(function))


def _compile(function: Function, extra: dict[str, Any]) -> Function:
    # Nobody calls them from C, and the wrapper for that takes a tenth of the compiler's time.
    options: dict[str, Any] = {"nogil": True, "no_cfunc_wrapper": True, **extra}
    compiled = _with_cache(function, options)
    if compiled is None:
        _log.info("%s is compiled anew in every process: no folder is writable", function)
        return cast("Function", numba.njit(**options)(function))
    cache = compiled._cache
    folder = Path(cache.cache_path)
    # The kernels that a function calls are built into its code, so it depends on all sources.
    stamp = (cache._impl.locator.get_source_stamp(), _all_sources())
    cache._cache_file = CodeFiles(folder, cache._impl.filename_base, stamp)
    # A disk that is full when the code is saved costs time, not the run.
    cache._guard_against_spurious_io_errors = lambda: contextlib.suppress(OSError)
    compile_signature = compiled.compile

    def compile_in_own_turn(signature: object) -> Any:
        with compile_in_turn():
            return compile_signature(signature)

    compiled.compile = compile_in_own_turn
    return cast("Function", compiled)


def _with_cache(function: Callable[..., object], options: dict[str, Any]) -> Any:
    """Decorate, with the first folder that can be written; None if there is none."""
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder
        folder = private_temporary_folder()
    if folder is None:
        return None
    config: Any = numba.core.config
    given = config.CACHE_DIR
    config.CACHE_DIR = str(folder)
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return None
    finally:
        config.CACHE_DIR = given


@functools.cache
def _all_sources() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
