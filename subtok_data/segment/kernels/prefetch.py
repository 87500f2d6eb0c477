"""Asking for memory before it is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

__all__ = ["prefetch"]

FOR_WRITING, KEEP_IN_ALL_CACHES, DATA = 1, 3, 1


def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:  # noqa: ARG001
    """Have ``array[index]`` brought into the cache; an index outside the array does no harm."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        struct = context.make_array(array_type)(context, builder, arguments[0])
        pointer = cgutils.get_item_pointer(context, builder, array_type, struct, [arguments[1]])
        byte = builder.bitcast(pointer, ir.IntType(8).as_pointer())
        hints = [
            ir.Constant(ir.IntType(32), hint) for hint in (FOR_WRITING, KEEP_IN_ALL_CACHES, DATA)
        ]
        function = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [byte.type],
            ir.FunctionType(ir.VoidType(), [byte.type, *(hint.type for hint in hints)]),
        )
        builder.call(function, [byte, *hints])
        return context.get_dummy_value()

    return types.none(array, types.intp), generate


prefetch: Callable[[Any, Any], None] = cast(Any, intrinsic(_prefetch))
