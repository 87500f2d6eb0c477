"""Panoptic models as segmenters: things and stuff become tokens that know their class."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from subtok_data.arguments import check_count, check_share
from subtok_data.device_streams import send_to
from subtok_data.errors import ConfigError
from subtok_data.segment import FillRules, LabelMapPartitioner
from subtok_data.segmenters.base import (
    Evidence,
    Images,
    Segmenter,
    Sizes,
    partitioner_config,
    refuse_prompts,
)
from subtok_data.segmenters.pretrained import ModelComponent, TransformersModel, load_pretrained
from subtok_data.segmenters.sam import nan_error
from subtok_data.transformers_io import read_pretrained

__all__ = ["PanopticSegmenter"]

_TASK = "panoptic"
"""The task in OneFormer's prompt."""


class PanopticSegmenter(ModelComponent, Segmenter):
    """Mask2Former, OneFormer, EoMT or a model like them, then connected parts: tokens with a class.

    Takes models of transformers whose image processor has ``post_process_panoptic_segmentation``.
    Each segment's connected parts become tokens; pixels that the model leaves open join the
    nearest one. Token fields: ``class`` (the model's id, −1 for none), ``score``, ``source``.

    Parameters
    ----------
    model : str, Path or nn.Module
        A folder or hub id, loaded at first use (safetensors only); or a model, with ``processor``.
    processor : object, optional
        Image processor, for a model that is given as a module; OneFormer's whole processor, since
        the model reads its task as text.
    rules : FillRules, optional
        Which parts become tokens. By default those of 16 pixels or more, and no gap.
    threshold : float
        Least score of a segment, in [0, 1].
    mask_threshold : float
        Least probability of a segment's pixel, in [0, 1].
    overlap_threshold : float
        A segment of which other segments take more than ``1 - overlap_threshold`` is left out.
    fuse : collection of int
        Classes whose segments are one label, so that those that touch are one token: sky, road.
    batch_size : int
        Images per call of the model, at most.
    device : str or torch.device, optional
        Where the model runs; None picks a CUDA device if there is one.

    Raises
    ------
    ConfigError
        A threshold or batch size out of range, or a module without its processor.
    WeightsError
        At first use: nothing loadable under that name.

    Examples
    --------
    >>> from subtok_data import PanopticSegmenter, SubobjectTokenizer
    >>> segmenter = PanopticSegmenter("facebook/mask2former-swin-tiny-coco-panoptic")
    >>> tokenizer = SubobjectTokenizer(segmenter, max_tokens=64)
    """

    name: ClassVar[str] = "panoptic"
    folder: ClassVar[str] = "panoptic_model"

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        processor: Any = None,
        *,
        rules: FillRules | None = None,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_threshold: float = 0.8,
        fuse: Collection[int] = (),
        batch_size: int = 8,
        device: str | torch.device | None = None,
    ) -> None:
        for name, value in (
            ("threshold", threshold),
            ("mask_threshold", mask_threshold),
            ("overlap_threshold", overlap_threshold),
        ):
            check_share(name, value)
        check_count("batch_size", batch_size, optional=False)
        partitioner = LabelMapPartitioner() if rules is None else LabelMapPartitioner(rules)
        if partitioner.has_cost_map:
            raise ConfigError(
                'fill="boundary": a panoptic model gives no boundary map, so use fill="nearest"'
            )
        super().__init__(model, processor, device)
        self.partitioner = partitioner
        self.thresholds = {
            "threshold": threshold,
            "mask_threshold": mask_threshold,
            "overlap_mask_area_threshold": overlap_threshold,
        }
        self.fuse = frozenset(fuse)
        self.batch_size = batch_size

    def _open(self, source: str | Path, device: torch.device) -> Any:
        model, processor = _load_panoptic(str(source))
        return TransformersModel(model.to(device), processor)

    def infer(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> list[Evidence]:
        """Return ``label_map`` (H, W) int32, ``label_class`` and ``label_score`` of each image.

        Images of one input size share a call of the model, others do not: padding would let them
        change one another's result.
        """
        refuse_prompts(self, prompts)
        inputs = [self._prepare(image) for image in images]
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, one in enumerate(inputs):
            groups.setdefault(tuple(one["pixel_values"].shape[1:]), []).append(place)
        found: dict[int, Evidence] = {}
        for members in groups.values():
            for start in range(0, len(members), self.batch_size):
                chunk = members[start : start + self.batch_size]
                outputs = self._forward([inputs[place] for place in chunk])
                finite = _are_finite(outputs.class_queries_logits, outputs.masks_queries_logits)
                for row, place in enumerate(chunk):
                    if not finite[row]:
                        raise nan_error(place if len(images) > 1 else None)
                    found[place] = self._read(outputs, row, inputs[place], sizes[place])
        return [found[place] for place in range(len(images))]

    def _prepare(self, image: NDArray[np.uint8]) -> Mapping[str, Any]:
        processor = self._loaded().processor
        task: dict[str, Any] = {"task_inputs": [_TASK]} if _reads_task(processor) else {}
        return processor(
            images=[image], input_data_format="channels_last", return_tensors="pt", **task
        )

    @torch.inference_mode()
    def _forward(self, inputs: Sequence[Mapping[str, Any]]) -> Any:
        model = self.model
        accepted = inspect.signature(model.forward).parameters
        joined = {
            key: send_to(torch.cat([one[key] for one in inputs]), model.device)
            for key, value in inputs[0].items()
            if key in accepted and isinstance(value, torch.Tensor)
        }
        # Files in half precision are loaded as they are.
        joined["pixel_values"] = joined["pixel_values"].to(getattr(model, "dtype", torch.float32))
        if "task_inputs" in accepted and "task_inputs" not in joined:
            raise ConfigError(
                f"{type(model).__name__} reads its task as text: give it OneFormerProcessor, not "
                "the image processor alone"
            )
        outputs = model(**joined)
        if not hasattr(outputs, "class_queries_logits"):
            raise ConfigError(
                f"{type(model).__name__} answers with {', '.join(outputs)}, expected "
                "class_queries_logits and masks_queries_logits: give Mask2Former, MaskFormer, "
                "OneFormer or EoMT"
            )
        return outputs

    @torch.inference_mode()
    def _read(
        self,
        outputs: Any,
        row: int,
        inputs: Mapping[str, Any],
        size: tuple[int, int],
    ) -> Evidence:
        processor = _image_part(self._loaded().processor)
        masks = outputs.masks_queries_logits[row : row + 1].float()
        own = SimpleNamespace(
            class_queries_logits=outputs.class_queries_logits[row : row + 1].float(),
            masks_queries_logits=_without_padding(masks, inputs.get("pixel_mask")),
        )
        options: dict[str, Any] = dict(self.thresholds)
        process = processor.post_process_panoptic_segmentation
        if "label_ids_to_fuse" in inspect.signature(process).parameters:
            # Fused there, segments can get the number of another one; they are fused below.
            options["label_ids_to_fuse"] = set[int]()
        (result,) = process(own, target_sizes=[tuple(size)], **options)
        return self._evidence(result["segmentation"].cpu().numpy(), result["segments_info"])

    def _evidence(self, segments: NDArray[Any], described: Sequence[Any]) -> Evidence:
        classes = np.array([one["label_id"] for one in described], np.int64)
        scores = np.array([one["score"] for one in described], np.float32)
        # Models number from 0 or 1, and mark the rest by 0 or −1: only what is described counts.
        highest = max((int(one["id"]) for one in described), default=-1)
        labels = np.full(max(highest, int(segments.max())) + 2, -1, np.int32)
        first: dict[int, int] = {}
        for place, one in enumerate(described):
            kind = int(classes[place])
            labels[one["id"]] = first.setdefault(kind, place) if kind in self.fuse else place
        return {
            "label_map": labels[segments.astype(np.int64)],  # the index −1 is the last entry
            "label_class": classes,
            "label_score": scores,
        }

    def config(self) -> dict[str, Any]:
        """Options and the identity of the weights, as JSON values."""
        return {
            "segmenter": self.name,
            "partitioner": partitioner_config(self.partitioner),
            "thresholds": self.thresholds,
            "fuse": sorted(self.fuse),
            "model": self.model_hash(),
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], folder: Path, device: str | torch.device | None
    ) -> Self:
        """Build from what :meth:`config` and :meth:`save_model` wrote."""
        options = config["thresholds"]
        return cls(
            folder / cls.folder,
            rules=FillRules(**config["partitioner"]["rules"]),
            threshold=options["threshold"],
            mask_threshold=options["mask_threshold"],
            overlap_threshold=options["overlap_mask_area_threshold"],
            fuse=config["fuse"],
            device=device,
        )


def _load_panoptic(name: str) -> tuple[Any, Any]:
    """Load a model and its processor; OneFormer's whole one, with the tokenizer for its task."""
    from transformers import AutoModelForUniversalSegmentation

    model, processor = load_pretrained(AutoModelForUniversalSegmentation, _read_processor, name)
    _check_processor(processor, name)
    return model, processor


def _read_processor(name: str, model: Any) -> Any:
    from transformers import AutoImageProcessor, OneFormerProcessor

    if model.config.model_type == "oneformer":
        # Its file of class names is on the hub, and only training needs it.
        return read_pretrained(OneFormerProcessor, name, class_info_file=None)
    return read_pretrained(AutoImageProcessor, name)


def _check_processor(processor: Any, name: str) -> None:
    images = _image_part(processor)
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


def _image_part(processor: Any) -> Any:
    """Image processor of a processor that has one, or the processor itself."""
    return getattr(processor, "image_processor", processor)


def _reads_task(processor: Any) -> bool:
    """Whether a processor makes text inputs of a task's name."""
    return _image_part(processor) is not processor and "task_inputs" in (
        inspect.signature(type(processor).__call__).parameters
    )


def _are_finite(*logits: torch.Tensor) -> list[bool]:
    """Whether all logits of each image are finite; waits for the device once."""
    rows = [torch.isfinite(one).flatten(1).all(1) for one in logits]
    return torch.stack(rows).all(0).tolist()


def _without_padding(masks: torch.Tensor, pixel_mask: torch.Tensor | None) -> torch.Tensor:
    """Cut off what a processor padded right and below; its post-processing does not."""
    if pixel_mask is None:
        return masks
    height, width = pixel_mask.shape[-2:]
    rows = round(int(pixel_mask[0].any(1).sum()) * masks.shape[-2] / height)
    columns = round(int(pixel_mask[0].any(0).sum()) * masks.shape[-1] / width)
    return masks[..., : max(rows, 1), : max(columns, 1)]
