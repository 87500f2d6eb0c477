"""Inference for the images of some samples; a failure is put down to the sample it is about."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from subtok_data.data.work import SampleWork
from subtok_data.errors import SubtokError
from subtok_data.segment.geometry import picture_size
from subtok_data.segment.prompts import Prompts
from subtok_data.segmenters import (
    Evidence,
    Launch,
    LaunchingSegmenter,
    Segmenter,
    takes_prompts,
)

__all__ = ["ReadyEvidence", "infer", "launch"]


class ReadyEvidence:
    """Evidence that is there already.

    Parameters
    ----------
    evidence : list of Evidence
        Of each image.
    """

    def __init__(self, evidence: list[Evidence]) -> None:
        self._evidence = evidence

    def result(self) -> list[Evidence]:
        """See :class:`~subtok_data.segmenters.Launch`."""
        return self._evidence


def launch(segmenter: Segmenter, samples: Sequence[SampleWork]) -> Launch:
    """Start inference for all images of the samples; returns at once if the segmenter can."""
    if isinstance(segmenter, LaunchingSegmenter) and segmenter.is_asynchronous:
        return segmenter.launch(*_inputs(segmenter, samples))
    return ReadyEvidence(infer(segmenter, samples))


def infer(segmenter: Segmenter, samples: Sequence[SampleWork]) -> list[Evidence]:
    """Infer all images of the samples together, or one by one if that fails.

    Returns
    -------
    list of Evidence
        Of each image, in order; empty for an image that cannot be inferred, whose sample has
        failed then.

    Raises
    ------
    SubtokError
        If not one sample can be inferred: then the model is at fault, not an image.
    """
    inputs = _inputs(segmenter, samples)
    try:
        return segmenter.infer(*inputs) if inputs[0] else []
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        found = _infer_each(segmenter, samples)
        if all(sample.error is not None for sample in samples):
            raise SubtokError(f"inference failed on every image of a batch: {error}") from error
        return found


def _infer_each(segmenter: Segmenter, samples: Sequence[SampleWork]) -> list[Evidence]:
    found: list[Evidence] = []
    for sample in samples:
        for image, size, prompts in zip(*_inputs(segmenter, [sample]), strict=True):
            try:
                found += segmenter.infer([image], [size], [prompts])
            except Exception as error:
                sample.fail(error, "infer")
                found.append({})
    return found


def _inputs(
    segmenter: Segmenter, samples: Sequence[SampleWork]
) -> tuple[list[NDArray[np.uint8]], list[tuple[int, int]], list[Prompts | None]]:
    """Images, their sizes, and their prompts if the segmenter takes any."""
    images = [image for sample in samples for image in sample.images]
    sizes = [picture_size(image) for image in images]
    if not takes_prompts(segmenter):
        return images, sizes, [None] * len(images)
    prompts: list[Prompts | None] = []
    for sample in samples:
        prompts += sample.prompts or [None] * len(sample.images)
    return images, sizes, prompts
