"""Panoptic models of transformers: loading, checks, and what a processor padded."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from subtok_data.errors import ConfigError
from subtok_data.segmenters.loading import load_pretrained

__all__ = ["image_part", "load_panoptic", "reads_task", "without_padding"]


def load_panoptic(name: str) -> tuple[Any, Any]:
    """Load a panoptic model and its processor.

    Parameters
    ----------
    name : str
        Folder, or hub id.

    Returns
    -------
    model : nn.Module
        In eval mode.
    processor : object
        Image processor; OneFormer's whole processor, with the tokenizer for its task.

    Raises
    ------
    WeightsError
        Nothing loadable under that name.
    ConfigError
        A model whose processor does not post-process panoptic segmentations.
    """
    from transformers import AutoModelForUniversalSegmentation

    model, processor = load_pretrained(AutoModelForUniversalSegmentation, _read_processor, name)
    _check_processor(processor, name)
    return model, processor


def _read_processor(name: str, model: Any) -> Any:
    from transformers import AutoImageProcessor, AutoProcessor

    if model.config.model_type == "oneformer":
        # Its file of class names is on the hub, and only training needs it.
        return AutoProcessor.from_pretrained(name, class_info_file=None)
    return AutoImageProcessor.from_pretrained(name)


def _check_processor(processor: Any, name: str) -> None:
    images = image_part(processor)
    if not hasattr(images, "post_process_panoptic_segmentation"):
        raise ConfigError(
            f"{name!r}: {type(processor).__name__} has no post_process_panoptic_segmentation; "
            "give a panoptic model"
        )
    if getattr(images, "do_split_image", False):
        raise ConfigError(
            f"{name!r}: {type(processor).__name__} cuts images into pieces (do_split_image), as "
            "checkpoints for semantic segmentation do; give a panoptic checkpoint"
        )


def image_part(processor: Any) -> Any:
    """Return the image processor of a processor that has one, or the processor itself.

    Examples
    --------
    >>> image_part("itself")
    'itself'
    """
    return getattr(processor, "image_processor", processor)


def reads_task(processor: Any) -> bool:
    """Whether a processor makes text inputs of a task's name.

    Examples
    --------
    >>> reads_task(None)
    False
    """
    return image_part(processor) is not processor and "task_inputs" in (
        inspect.signature(type(processor).__call__).parameters
    )


def without_padding(masks: torch.Tensor, pixel_mask: torch.Tensor | None) -> torch.Tensor:
    """Cut off what a processor padded right and below; its post-processing does not."""
    if pixel_mask is None:
        return masks
    height, width = pixel_mask.shape[-2:]
    rows = round(int(pixel_mask[0].any(1).sum()) * masks.shape[-2] / height)
    columns = round(int(pixel_mask[0].any(0).sum()) * masks.shape[-1] / width)
    return masks[..., : max(rows, 1), : max(columns, 1)]
