"""What a model's ``forward`` takes of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch.nn.parallel import DataParallel, DistributedDataParallel

from subtok_data.batch.keys import PACKED_KEYS

__all__ = ["model_inputs"]


def model_inputs(batch: Mapping[str, Any], model: Callable[..., Any]) -> dict[str, Any]:
    """Select the entries of a batch that a model's ``forward`` takes.

    Parameters
    ----------
    batch : mapping
        A batch of this library, padded or packed.
    model : torch.nn.Module or callable
        Its ``forward`` (or the callable itself) names what it takes. Data-parallel wrappers
        are looked through.

    Returns
    -------
    dict
        Entries whose key is a parameter; all of them if there is a ``**kwargs`` parameter. The
        ``**kwargs`` of a transformers model go on to its layers, which know nothing of images: such
        a model gets what it names, its ``visual_inputs`` where it has that attribute, and with a
        packed batch the positions and ``use_cache=False``.

    Examples
    --------
    >>> model_inputs({"pixel_values": 1, "sample_index": 2}, lambda pixel_values: None)
    {'pixel_values': 1}
    """
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        model = model.module
    forward = getattr(model, "forward", model)
    parameters = inspect.signature(forward).parameters
    wanted = set(parameters)
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        # All transformers models have these two; importing the library only to ask is slow.
        if not (hasattr(model, "config") and hasattr(model, "main_input_name")):
            return dict(batch)
        wanted |= {*PACKED_KEYS, *getattr(model, "visual_inputs", ())}
    inputs = {name: value for name, value in batch.items() if name in wanted}
    if "cu_seq_lens_q" in inputs:
        inputs["use_cache"] = False
    return inputs
