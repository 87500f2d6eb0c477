"""Forwards as CUDA graphs: the host queues one replay instead of some 250 operations.

A graph belongs to one shape, so the number of images in a forward is rounded up to a power of two
with blanks, and images of one canvas need few graphs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["CaptureWarning", "ForwardGraphs", "capture_on_cuda", "padded_length"]

Outputs = tuple[torch.Tensor, ...]
Forward = Callable[[torch.Tensor], Outputs]
Capture = Callable[[Forward, torch.Tensor, Any], tuple[Forward, Any]]

#: Times that a shape runs before it is captured: some sizes of photos never come again.
_RUNS_BEFORE = 2


class CaptureWarning(UserWarning):
    """A network cannot be captured as a CUDA graph; it runs operation by operation."""


def padded_length(count: int) -> int:
    """Round a number of images up to a power of two.

    Examples
    --------
    >>> [padded_length(count) for count in (1, 2, 3, 5, 16)]
    [1, 2, 4, 8, 16]
    """
    return 1 << (count - 1).bit_length()


class ForwardGraphs:
    """Run a forward by graphs, one a shape; all of one stream and in one memory pool.

    Not safe for threads: graphs share their memory, so one must be done, or be queued on the same
    stream, before the next.

    Parameters
    ----------
    forward : callable
        (N, …) tensor → tensors of N rows each, each row of its own input row alone. Waits for
        nothing.
    name : str
        Of the network, for messages.
    most : int, optional
        Graphs that are kept; shapes that come later run as they are.
    capture : callable, optional
        ``capture(forward, inputs, pool)`` returns a callable that gives the outputs for other
        inputs of that shape, and the pool for the next.

    Examples
    --------
    >>> def no_graph(forward, inputs, pool):
    ...     return forward, pool
    >>> graphs = ForwardGraphs(lambda rows: (rows + 1,), "plus", capture=no_graph)
    >>> graphs(torch.zeros(3, 2))[0].shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        forward: Forward,
        name: str,
        *,
        most: int = 128,
        capture: Capture | None = None,
    ) -> None:
        self._forward = forward
        self._name = name
        self._most = most
        self._capture = capture_on_cuda if capture is None else capture
        self._works = True
        self._pool: Any = None
        self._graphs: dict[tuple[int, ...], Forward] = {}
        self._runs: dict[tuple[int, ...], int] = {}

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of inputs that are captured, in the order in which they were."""
        return list(self._graphs)

    def forget(self) -> None:
        """Give the memory of all graphs back; what has been queued must be done."""
        self._graphs.clear()
        self._runs.clear()
        self._pool = None

    def __call__(self, inputs: torch.Tensor) -> Outputs:
        """Outputs of the rows, in memory of their own.

        Raises
        ------
        torch.OutOfMemoryError
            As from the forward; then no graph is kept.
        """
        count = len(inputs)
        length = padded_length(count)
        if length > count:
            blanks = inputs.new_zeros((length - count, *inputs.shape[1:]))
            inputs = torch.cat([inputs, blanks])
        return tuple(rows[:count] for rows in self._run(inputs))

    def _run(self, inputs: torch.Tensor) -> Outputs:
        shape = tuple(inputs.shape)
        replay = self._graphs.get(shape)
        try:
            if replay is None and self._is_worth(shape):
                replay = self._captured(inputs)
            return self._forward(inputs) if replay is None else replay(inputs)
        except torch.OutOfMemoryError:
            self.forget()
            raise

    def _is_worth(self, shape: tuple[int, ...]) -> bool:
        if not self._works or len(self._graphs) >= self._most:
            return False
        runs = self._runs.get(shape, 0)
        self._runs[shape] = runs + 1
        return runs >= _RUNS_BEFORE

    def _captured(self, inputs: torch.Tensor) -> Forward | None:
        try:
            replay, self._pool = self._capture(self._forward, inputs, self._pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # a device that is lost says so in the next forward
            self._works = False
            warnings.warn(
                f"boundary model {self._name!r} cannot be captured as a CUDA graph, and runs "
                f"operation by operation: {error}. cuda_graphs=False says so from the start",
                CaptureWarning,
                stacklevel=2,
            )
            return None
        self._graphs[tuple(inputs.shape)] = replay
        return replay


def capture_on_cuda(forward: Forward, inputs: torch.Tensor, pool: Any) -> tuple[Forward, Any]:
    """Capture a forward on the current CUDA stream.

    Parameters
    ----------
    forward : callable
        Has run with such inputs before, so that libraries and algorithms are loaded.
    inputs : Tensor
        Of the shape to capture; copied.
    pool : optional
        Memory pool of earlier graphs.

    Returns
    -------
    replay, pool
        The outputs of a replay are copies, and so survive the next one.
    """
    kept = inputs.clone()
    graph = torch.cuda.CUDAGraph()
    pool = torch.cuda.graph_pool_handle() if pool is None else pool
    # Other threads, training among them, may allocate and wait meanwhile: it is none of our errors.
    with torch.cuda.graph(
        graph, pool, torch.cuda.current_stream(), capture_error_mode="thread_local"
    ):
        outputs = forward(kept)

    def replay(given: torch.Tensor) -> Outputs:
        kept.copy_(given)
        graph.replay()
        return tuple(one.clone() for one in outputs)

    return replay, pool
