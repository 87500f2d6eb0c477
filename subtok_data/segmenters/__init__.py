"""Segmenters: what joins evidence from a device with a partition made on the CPU.

Every way of partitioning an image into tokens is the same two steps. ``infer`` runs batched, in the
main process, where the device is, and gives named numpy arrays per image; the ``partitioner`` turns
them into a :class:`~subtok_data.segment.Partition` in worker processes that never import torch.
Budget, order, batch, loader and benchmarks know no more than :class:`Segmenter`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
