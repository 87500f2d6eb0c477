"""SAM and SAM 2 as segmenters: masks of everything in a picture, then a complete partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from subtok_data.errors import ConfigError
from subtok_data.segment import FillRules, MaskPartitioner, PaintOrder
from subtok_data.segmenters.base import Evidence, Images, Sizes, partitioner_config, refuse_prompts
from subtok_data.segmenters.pretrained import best_device, load_pretrained
from subtok_data.segmenters.sam.decoder import SAMDecoder
from subtok_data.segmenters.sam.mask_generation import (
    GenerationOptions,
    PointDecoder,
    generate_masks,
)

__all__ = ["MODEL_FOLDER", "PromptableModel", "SAMSegmenter"]
MODEL_FOLDER = "sam_model"
"""Where a saved tokenizer has the segmenter's model."""


class PromptableModel:
    """What segmenters and prompters on a promptable model share: loading, moving and saving it.

    Parameters
    ----------
    model : str, Path, nn.Module or PointDecoder
        A folder or hub id, loaded at first use; a model, with ``processor``; or a decoder.
    processor : object, optional
        Image processor, for a model that is given as a module.
    device : str or torch.device, optional
        Where the model runs; None picks a CUDA device if there is one.

    Raises
    ------
    ConfigError
        A module without its processor, or a processor without its module.
    """

    name: ClassVar[str]
    folder: ClassVar[str] = MODEL_FOLDER

    def __init__(
        self,
        model: str | Path | torch.nn.Module | PointDecoder,
        processor: Any = None,
        device: str | torch.device | None = None,
    ) -> None:
        if isinstance(model, torch.nn.Module) == (processor is None):
            kind = type(self).__name__
            raise ConfigError(
                "give a folder or hub id alone, or a module together with its image processor: "
                f"{kind}({type(model).__name__}, processor={type(processor).__name__})"
            )
        self._device = device
        self._name = model if isinstance(model, str | Path) else None
        self._hash: str | None = None
        self._decoder: Any = None
        if isinstance(model, torch.nn.Module):
            self._decoder = SAMDecoder(model.eval().to(best_device(device)), processor)
        elif not isinstance(model, str | Path):
            self._decoder = model

    def _load(self, name: str | Path) -> PointDecoder:
        from transformers import AutoImageProcessor, AutoModelForMaskGeneration

        def read_processor(name: str, model: object) -> object:
            del model
            return AutoImageProcessor.from_pretrained(name)

        model, processor = load_pretrained(AutoModelForMaskGeneration, read_processor, name)
        return SAMDecoder(model.to(best_device(self._device)), processor)

    @property
    def decoder(self) -> Any:
        """The model as mask generation and prompters see it, loaded on first use."""
        if self._decoder is None:
            self._decoder = self._load(self._name or "")
        return self._decoder

    @property
    def model(self) -> Any:
        """The model, loaded on first use; None for a decoder of your own that has none."""
        return getattr(self.decoder, "model", None)

    def to(self, device: str | torch.device) -> Self:
        """Move the model to a device."""
        self._device = device
        if hasattr(self._decoder, "to"):
            self._decoder.to(device)
        return self

    def _saved(self) -> Any:
        if not (hasattr(self.decoder, "identity") and hasattr(self.decoder, "save")):
            raise ConfigError(
                f"{type(self.decoder).__name__} cannot be saved or told apart from others: give it "
                f"identity() and save(folder), or give {type(self).__name__} a model that the "
                "library loads"
            )
        return self.decoder

    def model_hash(self) -> str:
        """Return the identity of model and processor, SHA-256."""
        decoder = self._saved()
        if self._hash is None:
            self._hash = str(decoder.identity())
        return self._hash

    def save_model(self, folder: Path) -> None:
        """Write model and processor below ``folder``."""
        self._saved().save(folder / self.folder)


class SAMSegmenter(PromptableModel):
    """Automatic masks of SAM or SAM 2, made a complete partition.

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
        Holes and islands of masks below this many pixels are cleaned; 0: masks as they are.
    device : str or torch.device, optional
        Where the model runs; None picks a CUDA device if there is one.

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
        self.partitioner = MaskPartitioner(paint, rules or FillRules(), min_region)
        if self.partitioner.has_cost_map:
            raise ConfigError(
                'fill="boundary": masks come without a boundary map, so use fill="nearest"'
            )

    def infer(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> list[Evidence]:
        """Return the masks of each image, packed; see :class:`~subtok_data.segment.masks`."""
        refuse_prompts(self, prompts)
        generated = generate_masks(self.decoder, images, self.options)
        return [
            masks.pack((size[0], size[1])).to_evidence()
            for masks, size in zip(generated, sizes, strict=True)
        ]

    def config(self) -> dict[str, Any]:
        """Options and the identity of the weights, as JSON values."""
        return {
            "segmenter": self.name,
            "partitioner": partitioner_config(self.partitioner),
            "generation": asdict(self.options),
            "model": self.model_hash(),
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], folder: Path, device: str | torch.device | None
    ) -> SAMSegmenter:
        """Build from what :meth:`config` and :meth:`save_model` wrote."""
        options = config["partitioner"]
        return cls(
            folder / MODEL_FOLDER,
            options=GenerationOptions(**config["generation"]),
            paint=options["paint"],
            rules=FillRules(**options["rules"]),
            min_region=options["min_region"],
            device=device,
        )
