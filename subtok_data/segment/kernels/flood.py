"""The flood: a bucket queue of 256 levels, each first in, first out.

All unlabelled pixels lie in one array, ``state``, that has a frame of one labelled pixel, so that
neighbours need no bounds checks. A pixel that has its label holds it (>= 0); one that waits holds
its level as ``-1 - level``. So one read tells whether a neighbour waits, and for which queue.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from subtok_data.segment.kernels.jit import Bytes, Ints, Labels, Scalar, Words, inner_kernel, kernel
from subtok_data.segment.kernels.marks import Marks, empty_marks, list_marks

__all__ = ["flood_pixels", "prefetch", "scratch_slots"]

# The queues are chains of chunks of this many pixels, read one after the other: a chain of single
# pixels would make every step wait for the last one. Emptied chunks are used again, which keeps the
# memory in play small enough for the first caches.
CHUNK = 64
SHIFT = 6

# The queues jump about the image, but where they go is known a few pixels before.
AHEAD = 8


def scratch_slots(pixels: int) -> int:
    """Count the slots of a flood: each pixel once, and two chunks of each queue part empty.

    Examples
    --------
    >>> scratch_slots(0)
    33152
    """
    return (pixels // CHUNK + 2 * 258 + 2) * CHUNK


class Queues(NamedTuple):
    """Waiting pixels by level, each queue a chain of chunks of slots."""

    slots: Ints  # pixels, CHUNK to a chunk
    links: Ints  # of each chunk, the next one in its chain
    spare: Ints  # (2,) first chunk of the chain of emptied ones, -1 for none; first unused chunk
    tails: Ints  # of each queue the slot for its next pixel; the last is for what is thrown away


class Steps(NamedTuple):
    """Steps to each set of neighbours, with the bits 1, 2, 4, 8 for up, left, right and down."""

    steps: Ints  # (64,) four places for each set
    counts: Words  # (16,)


def empty_queues(depth: int, slots: Ints) -> Queues:
    """Lay out some queues in the slots, and one more for what is thrown away."""
    return Queues(
        slots,
        np.empty(slots.size >> SHIFT, np.int32),
        np.array([-1, depth + 1], np.int32),
        np.arange(0, (depth + 1) << SHIFT, CHUNK, dtype=np.int32),
    )


@functools.lru_cache(64)
def neighbour_steps(stride: int) -> Steps:
    """List the steps to neighbours in an image with rows of ``stride`` pixels."""
    steps = np.zeros((16, 4), np.int32)
    counts = np.zeros(16, np.uint64)
    for some in range(16):
        chosen = [step for bit, step in enumerate((-stride, -1, 1, stride)) if some >> bit & 1]
        steps[some, : len(chosen)] = chosen
        counts[some] = len(chosen)
    return Steps(steps.ravel(), counts)


@inner_kernel
def next_chunk(queues: Queues, full: Scalar) -> int:
    """Append a chunk behind the chunk ``full``; return its first slot."""
    links, spare = queues.links, queues.spare
    chunk = spare[0]
    if chunk >= 0:
        spare[0] = links[chunk]
    else:
        chunk = spare[1]
        spare[1] += 1
    links[full] = chunk
    return chunk << SHIFT


@kernel
def paint_seeds(
    levels: Bytes, runs: Ints, first_run: Ints, labels: Ints, base: Scalar, state: Labels
) -> None:
    """Write the labels of seeds, and -base - level of all other pixels, inside a frame of 0."""
    height, width = levels.shape
    for x in range(width + 2):
        state[0, x] = 0
        state[height + 1, x] = 0
    for y in range(height):
        row = state[y + 1]
        row[0] = 0
        row[width + 1] = 0
        for x in range(width):
            row[x + 1] = -base - np.int64(levels[y, x])
        for i in range(first_run[y], first_run[y + 1]):
            label = labels[i]
            if label >= 0:
                for x in range(runs[i, 0] + 1, runs[i, 1] + 1):
                    row[x] = label


@kernel
def queue_seeds(state: Labels, levels: Bytes, imposed: bool, marks: Marks, queues: Queues) -> None:
    """Queue the seed pixels that have a neighbour to flood, in raster order.

    The others would find nothing to do when their turn comes, so leaving them out changes nothing.
    """
    height, width = levels.shape
    flags, places = marks.flags, marks.places
    slots, tails = queues.slots, queues.tails
    for y in range(height):
        above, here, below = state[y], state[y + 1], state[y + 2]
        for x in range(width):
            waits = (above[x + 1] < 0) | (here[x] < 0) | (here[x + 2] < 0) | (below[x + 1] < 0)
            flags[x] = waits & (here[x + 1] >= 0)
        for i in range(list_marks(marks)):
            x = np.int64(places[i])
            level = 0 if imposed else np.int64(levels[y, x])
            slot = np.int64(tails[level])
            slots[slot] = (y + 1) * (width + 2) + x + 1
            slot += 1
            if slot & (CHUNK - 1) == 0:
                slot = np.int64(next_chunk(queues, (slot - 1) >> SHIFT))
            tails[level] = slot


@kernel
def run_queues(
    pixels: Labels, stride: Scalar, queues: Queues, steps: Steps, listed: Ints, labels: Labels
) -> None:
    """Empty the queues from the lowest level up, labelling and queueing unlabelled neighbours.

    What is in a chunk already comes before all that is to be queued, so it is taken at once: first
    the waiting neighbours of all these pixels are listed, then labelled and queued in this order,
    unless one that came before was the same. Neither loop has a branch that is hard to guess.
    ``listed`` and ``labels`` are scratch memory, four places for a pixel of a chunk and one more.
    """
    slots, links, spare, tails = queues
    around, counts = steps
    # Unsigned, because numba would test every signed index for being negative: a sixth of the time.
    row, one, shift, low = np.uint64(stride), np.uint64(1), np.uint64(SHIFT), np.uint64(CHUNK - 1)
    nowhere = np.uint64(tails.size - 1)
    for level in range(tails.size - 1):
        queue = np.uint64(level)
        head = queue << shift
        while head != np.uint64(tails[queue]):
            tail = np.uint64(tails[queue])
            chunk = head >> shift
            is_last = tail >> shift == chunk
            end = tail if is_last else (chunk + one) << shift
            count = np.uint64(0)
            while head < end:
                soon = np.int64(slots[head + np.uint64(AHEAD)])
                prefetch(pixels, soon - stride)
                prefetch(pixels, soon)
                prefetch(pixels, soon + stride)
                place = slots[head]
                pixel = np.uint64(place)
                head += one
                waiting = (
                    np.uint64(pixels[pixel - row] < 0)
                    | (np.uint64(pixels[pixel - one] < 0) << one)
                    | (np.uint64(pixels[pixel + one] < 0) << np.uint64(2))
                    | (np.uint64(pixels[pixel + row] < 0) << np.uint64(3))
                )
                label = pixels[pixel]
                # Always four; the next pixel overwrites those that do not count.
                for i in range(4):
                    listed[count + np.uint64(i)] = (
                        place + around[(waiting << np.uint64(2)) + np.uint64(i)]
                    )
                    labels[count + np.uint64(i)] = label
                count += counts[waiting]
            if not is_last:
                head = np.uint64(links[chunk]) << shift
                links[chunk] = spare[0]
                spare[0] = np.int32(chunk)
            for i in range(np.int64(count)):
                place = listed[np.uint64(i)]
                pixel = np.uint64(place)
                state = pixels[pixel]
                waits = state < 0
                target = np.uint64(max(-1 - np.int64(state), level)) if waits else nowhere
                pixels[pixel] = labels[np.uint64(i)] if waits else state
                slot = np.uint64(tails[target])
                slots[slot] = place
                slot += np.uint64(waits)
                if slot & low == 0 and waits:
                    slot = np.uint64(next_chunk(queues, np.int64((slot - one) >> shift)))
                tails[target] = slot


def flood_pixels(
    levels: Bytes,
    runs: Ints,
    first_run: Ints,
    labels: Ints,
    imposed: bool,
    state: Labels,
    slots: Ints,
    token_map: Labels,
) -> None:
    """Flood a map from seeds, in the order of the standard priority-queue watershed.

    Pixels are taken by (level, time queued); each labels its waiting neighbours, in the order up,
    left, right, down, and queues them at their own level or at its own where that is higher.

    Parameters
    ----------
    levels : (H, W) uint8
        The map.
    runs, first_run, labels
        Seeds as row runs (:func:`~subtok_data.segment.kernels.components.label_runs`); a run with
        a negative label is no seed. At least one run is.
    imposed : bool
        False: seed pixels are queued at their own level, in raster order among equals; right when
        all of them lie below all others. True: seeds are imposed as the minima, below all others.
    state : (H + 2, W + 2) array of the dtype of ``token_map``, slots : int32
        Scratch memory; :func:`scratch_slots` says how many slots it takes.
    token_map : (H, W) int16 or int32
        Filled with the labels of the flood.
    """
    width = levels.shape[1]
    paint_seeds(levels, runs, first_run, labels, 2 if imposed else 1, state)
    queues = empty_queues(257 if imposed else 256, slots)
    queue_seeds(state, levels, imposed, empty_marks(width), queues)
    listed = np.empty(4 * CHUNK + 4, np.int32)
    listed_labels = np.empty(4 * CHUNK + 4, state.dtype)
    steps = neighbour_steps(width + 2)
    run_queues(state.ravel(), width + 2, queues, steps, listed, listed_labels)
    np.copyto(token_map, state[1:-1, 1:-1])


FOR_WRITING, KEEP_IN_ALL_CACHES, DATA = 1, 3, 1


def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:  # noqa: ARG001
    """Prefetch ``array[index]`` into the cache; an index outside the array does no harm."""

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
