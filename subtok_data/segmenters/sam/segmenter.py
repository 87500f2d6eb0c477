"""SAM, SAM 2 and SAM 3 as segmenters: masks of everything, then a complete partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from subtok_data.errors import ConfigError
from subtok_data.segment import FillRules, MaskPartitioner, PaintOrder
from subtok_data.segmenters.base import (
    Evidence,
    Images,
    Segmenter,
    Sizes,
    partitioner_config,
    refuse_prompts,
)
from subtok_data.segmenters.sam.decoder import PromptableModel
from subtok_data.segmenters.sam.mask_generation import (
    GenerationOptions,
    PointDecoder,
    generate_masks,
)

__all__ = ["SAMSegmenter"]


class SAMSegmenter(PromptableModel, Segmenter):
    """Automatic masks of SAM, SAM 2 or SAM 3, made a complete partition.

    The masks are those of the published procedure
    (:func:`~subtok_data.segmenters.generate_masks`); worker processes paint them over
    one another, turn large gaps into tokens and share out the rest
    (:class:`~subtok_data.segment.MaskPartitioner`). Token fields: ``source`` (0 for a mask, 1
    for a gap), ``score`` (predicted IoU).

    Parameters
    ----------
    model : str, Path, nn.Module or PointDecoder
        A folder or hub id of a model that ``AutoModelForMaskGeneration`` loads (safetensors only,
        at first use); such a model, with ``processor``; or a decoder of your own.
    processor : object, optional
        Image processor, for a model that is given as a module.
    options : GenerationOptions, optional
        Grid of points, filters, crops; SAM's defaults.
    paint : {"area", "score"}
        Which of two masks lies on top: the smaller one, or the one of higher predicted IoU.
    rules : FillRules, optional
        Which parts become tokens, and who gets the rest.
    min_region : int
        Holes and islands of masks below this many pixels are cleaned, and of masks that this makes
        alike (IoU of boxes above the larger of ``box_nms`` and ``crop_nms``) one stays, as the
        original does it; 0: masks as they are.
    device : str or torch.device, optional
        Where the model runs; None picks a CUDA device if there is one.

    Notes
    -----
    The masks are bit for bit those of the official code only with a processor that resizes by
    Pillow, as it does (``SamImageProcessorPil``, beside the model as a module). The default one
    changes 15 to 39 % of the masks before the filters by some pixels (IoU at least 0.98).

    Raises
    ------
    ConfigError
        Options out of range, or a module without its processor.
    WeightsError
        At first use: nothing loadable under that name.

    Examples
    --------
    >>> from subtok_data import SAMSegmenter, SubobjectTokenizer
    >>> tokenizer = SubobjectTokenizer(SAMSegmenter("facebook/sam-vit-base"), max_tokens=128)
    """

    name: ClassVar[str] = "sam"

    def __init__(
        self,
        model: str | Path | torch.nn.Module | PointDecoder,
        processor: Any = None,
        *,
        options: GenerationOptions | None = None,
        paint: PaintOrder = "area",
        rules: FillRules | None = None,
        min_region: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(model, processor, device)
        self.options = options or GenerationOptions()
        partitioner = MaskPartitioner(
            paint, rules or FillRules(), min_region, self.options.max_overlap
        )
        if partitioner.has_cost_map:
            raise ConfigError(
                'fill="boundary": masks come without a boundary map, so use fill="nearest"'
            )
        self.partitioner = partitioner

    def infer(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> list[Evidence]:
        """Return the masks of each image, packed; see :class:`~subtok_data.segment.RLEMasks`."""
        refuse_prompts(self, prompts)
        generated = generate_masks(self.decoder, images, self.options)
        return [
            masks.pack((size[0], size[1])).to_evidence()
            for masks, size in zip(generated, sizes, strict=True)
        ]

    def config(self) -> dict[str, Any]:
        """Options and the identity of the weights, as JSON values."""
        partitioner = partitioner_config(self.partitioner)
        del partitioner["max_overlap"]  # follows from the options of generation
        return {
            "segmenter": self.name,
            "partitioner": partitioner,
            "generation": asdict(self.options),
            "model": self.model_hash(),
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], folder: Path, device: str | torch.device | None
    ) -> Self:
        """Build from what :meth:`config` and :meth:`save_model` wrote."""
        options = config["partitioner"]
        return cls(
            folder / cls.folder,
            options=GenerationOptions(**config["generation"]),
            paint=options["paint"],
            rules=FillRules(**options["rules"]),
            min_region=options["min_region"],
            device=device,
        )
