"""``SubobjectTokenizer``: a segmenter, a budget and an order; images in, tokens out."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never, overload

import torch

from subtok_data.arguments import check_type, compare_options, similar_names
from subtok_data.boundary import BoundaryModel
from subtok_data.errors import ConfigError
from subtok_data.hub import download_folder, is_hub_id, model_card, upload_folder
from subtok_data.images import (
    DEFAULT_MAX_PIXELS,
    DEFAULT_SIZE,
    Canvas,
    ImageLike,
    image_size,
    open_image,
)
from subtok_data.presets import find_preset
from subtok_data.segment import (
    Budget,
    MergeCost,
    Order,
    Overflow,
    Prompts,
    SegmentTask,
    add_prompts,
    fit_prompts,
    segment_image,
    warn_of_shortfall,
)
from subtok_data.segmenters import (
    EPOCSegmenter,
    Segmenter,
    SegmenterLike,
    as_segmenter,
    build_segmenter,
    build_without_weights,
)
from subtok_data.tokenized_image import TokenizedImage

if TYPE_CHECKING:
    from subtok_data.token_column import TokenColumn

__all__ = ["SubobjectTokenizer", "hash_config"]

CONFIG_FILE = "subtok_config.json"
FORMAT_VERSION = 3
"""Raised when the same configuration would give other tokens than before."""


class SubobjectTokenizer:
    """Partition images into a variable number of subobject tokens.

    Works offline with the packaged boundary model. Every pixel ends up in exactly one token.

    Parameters
    ----------
    segmenter : Segmenter, optional
        How images are partitioned; :class:`~subtok_data.EPOCSegmenter` if not given. One of your
        own needs ``partitioner`` and ``infer``, see :func:`~subtok_data.segmenters.as_segmenter`.
    threshold : float, optional
        Boundary threshold of the default segmenter, in (0, 1); the paper's is 0.1. Not together
        with ``segmenter`` (give it there), ``num_tokens`` or ``strength``.
    num_tokens : int, optional
        Exactly this many tokens per image (fewer where an image has not that many minima). Not
        together with another control, here or of the segmenter.
    strength : float, optional
        As many tokens as the image has borders stronger than this, from 0 to 1: the mean boundary
        probability that the border of a token of about one hundredth of the image needs to last
        among 64; smaller tokens, and more of them, need more. Tokens of a higher strength are
        unions of those of a lower one. Needs a segmenter with a boundary map. Not together with
        another control, here or of the segmenter. Without any it is the segmenter's
        ``default_strength``: 0.4 for :class:`~subtok_data.EPOCSegmenter`.
    max_tokens : int, optional
        At most this many tokens per image, by merging neighbours.
    min_area : int, optional
        Tokens smaller than this many pixels are merged into a neighbour. By default 0; by threshold
        that of the segmenter, 64 for :class:`~subtok_data.EPOCSegmenter`, because texture near the
        threshold leaves crumbs. ``threshold=0.1, min_area=0`` is the paper's.
    merge : {"balanced", "boundary"}, optional
        Merge cost; see :class:`~subtok_data.segment.Budget`.
    overflow : {"merge", "drop"}, optional
        ``"drop"`` loses the smallest tokens over ``max_tokens``, as the paper does, for comparison
        only.
    order : {"area", "raster"}, optional
        Order of the tokens: descending area (the paper's), or centers row by row.
    size : int or None, optional
        Longest side that images are resized to, in pixels, smaller images too: the boundary model
        finds what it learned to find at this size. None keeps images as they are.
    square : bool, optional
        Squash images to (size, size), as the paper does.
    full_decode : bool, optional
        Decode large JPEG files at their full size. By default a file that is four times as large as
        its canvas, or more, is decoded at 1/2, 1/4 or 1/8, still at least twice as large: several
        times faster, with a mean difference of less than one level of 256 after resizing.
    device : str or torch.device, optional
        Where the boundary model of the default segmenter runs; None picks a CUDA device if there is
        one. Not together with ``segmenter`` (give it there).

    Raises
    ------
    ConfigError
        An option out of range or unknown, options that contradict each other, or no segmenter.

    Examples
    --------
    >>> import numpy as np
    >>> from subtok_data import SubobjectTokenizer
    >>> tokenizer = SubobjectTokenizer(max_tokens=64)
    >>> tokens = tokenizer(np.zeros((120, 160, 3), np.uint8))
    >>> tokens.token_map.shape, int(tokens.areas.sum()) == 384 * 512
    ((384, 512), True)
    """

    def __init__(
        self,
        segmenter: SegmenterLike | None = None,
        *,
        threshold: float | None = None,
        num_tokens: int | None = None,
        strength: float | None = None,
        max_tokens: int | None = None,
        min_area: int | None = None,
        merge: MergeCost = "balanced",
        overflow: Overflow = "merge",
        order: Order = "area",
        size: int | None = DEFAULT_SIZE,
        square: bool = False,
        full_decode: bool = False,
        device: str | torch.device | None = None,
        **unknown: Never,
    ) -> None:
        _refuse_unknown(unknown)
        if segmenter is None:
            segmenter = EPOCSegmenter(threshold=threshold, device=device)
        elif threshold is not None or device is not None:
            raise ConfigError(
                "threshold and device belong to the segmenter when one is given: "
                f"{type(segmenter).__name__}(threshold=…, device=…)"
            )
        self.segmenter: Segmenter = as_segmenter(segmenter)
        if num_tokens is None and strength is None:
            strength = self.segmenter.default_strength
        if min_area is None:
            by_merging = num_tokens is not None or strength is not None
            min_area = 0 if by_merging else self.segmenter.default_min_area
        self.canvas = Canvas(size, square, full_decode=full_decode)
        self.budget = Budget(
            num_tokens=num_tokens,
            strength=strength,
            max_tokens=max_tokens,
            min_area=min_area,
            merge=merge,
            overflow=overflow,
        )
        self.order: Order = order
        # What is impossible (an order, a count, two controls) is refused here, not in a worker.
        self.segment_task()

    @classmethod
    def preset(
        cls,
        name: str,
        *,
        model: BoundaryModel | str | Path | None = None,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> SubobjectTokenizer:
        """Build a tokenizer by name.

        Parameters
        ----------
        name : str
            ``"paper-0.1"``, ``"paper-0.3"``, ``"paper-0.5"``, ``"exact-36"``, ``"exact-64"``,
            ``"exact-144"``, ``"exact-256"`` or ``"adaptive"``; ``docs/tokenizers.md`` says what
            each gives.
        model : BoundaryModel, str or Path, optional
            In place of the packaged weights, as for :class:`~subtok_data.EPOCSegmenter`: a folder
            or a name of the hub.
        device : str or torch.device, optional
            Where the boundary model runs.
        **options
            Of the class, in place of those of the preset or beside them.

        Raises
        ------
        ConfigError
            No such name, or options that contradict those of the preset.

        Examples
        --------
        >>> SubobjectTokenizer.preset("exact-64", size=256).budget.num_tokens
        64
        """
        chosen = {**find_preset(name).options, **options}
        segmenter = EPOCSegmenter(model, threshold=chosen.pop("threshold", None), device=device)
        return cls(segmenter, **chosen)

    @property
    def device(self) -> torch.device:
        """Where the segmenter's model runs; the CPU for segmenters without a model."""
        return self.segmenter.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the segmenter's model; float32 for segmenters without a model."""
        return self.segmenter.dtype

    def to(self, device: str | torch.device) -> SubobjectTokenizer:
        """Move the segmenter's model, if it has one, and return the tokenizer."""
        self.segmenter.to(device)
        return self

    def segment_task(
        self, *, shape_size: int | None = None, max_tokens: int | None = None
    ) -> SegmentTask:
        """Everything a worker process needs to partition images: picklable, free of torch.

        Parameters
        ----------
        shape_size : int, optional
            Also sample each token's shape on a grid of this side.
        max_tokens : int, optional
            A limit below the tokenizer's own, for one image that has less room.
        """
        budget = self.budget if max_tokens is None else self.budget.capped(max_tokens)
        return SegmentTask(self.segmenter.partitioner, budget, self.order, shape_size)

    @overload
    def __call__(
        self,
        images: list[ImageLike] | tuple[ImageLike, ...] | Iterator[ImageLike],
        *,
        prompts: Sequence[Prompts | None] | None = None,
        shape_size: int | None = None,
    ) -> list[TokenizedImage]: ...

    @overload
    def __call__(
        self, images: ImageLike, *, prompts: Prompts | None = None, shape_size: int | None = None
    ) -> TokenizedImage: ...

    def __call__(
        self, images: Any, *, prompts: Any = None, shape_size: int | None = None
    ) -> TokenizedImage | list[TokenizedImage]:
        """Tokenize one image, or each image of a list.

        Parameters
        ----------
        images : image, or list, tuple or iterator of images
            Path, bytes, PIL image, array (H, W, 3) or (H, W), tensor (3, H, W); a list may mix
            sizes. All are inferred together.
        prompts : Prompts, or list of Prompts or None, optional
            Regions to look for in the image, or in each image of a list, in pixels of the source.
            Segmenters that take prompts make tokens of them
            (:class:`~subtok_data.PromptedSegmenter`); with the others, ``.prompt_tokens`` says
            which token fits each best.
        shape_size : int, optional
            Also give each token's shape on a grid of this side, as ``.shapes`` (N, r, r) bool.

        Returns
        -------
        TokenizedImage or list of TokenizedImage
            One for one image, else a list.

        Raises
        ------
        ImageError
            If a value cannot become an RGB image.
        PromptError
            If prompts are for an image of another size, or not one entry per image.

        Warns
        -----
        UserWarning
            Images have fewer tokens than ``num_tokens``: once for all, with their number.
        """
        if isinstance(images, list | tuple | Iterator):
            return self._tokenize([*images], prompts, shape_size)
        return self._tokenize([images], [prompts], shape_size)[0]

    def _tokenize(
        self,
        values: Sequence[Any],
        prompts: Sequence[Prompts | None] | None,
        shape_size: int | None,
    ) -> list[TokenizedImage]:
        sources = [open_image(value) for value in values]
        images = [self.canvas.fit(source) for source in sources]
        sizes = [image_size(image) for image in images]
        fitted = fit_prompts(prompts, [image_size(source) for source in sources], sizes)
        taken = fitted if self.segmenter.takes_prompts else None
        task = self.segment_task(shape_size=shape_size)
        found: list[TokenizedImage] = []
        short = 0
        for source, image, size, one, evidence in zip(
            sources, images, sizes, fitted, self.segmenter.infer(images, sizes, taken), strict=True
        ):
            evidence = add_prompts(evidence, one)
            segmented = segment_image(task, evidence, size, image)
            short += segmented.shortfall > 0
            found.append(TokenizedImage.of(image, segmented, evidence, image_size(source)))
        warn_of_shortfall(short, len(found), self.budget.num_tokens)
        return found

    def as_column(
        self,
        *,
        image_column: str = "image",
        name: str = "subtok",
        batch_size: int = 8,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> TokenColumn:
        """Tokens as a column, for ``datasets.map(tokenizer.as_column(), batched=True)``.

        ``SubobjectDataset(dataset, tokens_column="subtok")`` reads it, from Parquet and from
        streams too: the same batches, without a model.

        Parameters
        ----------
        image_column : str, optional
            Which column holds the image, or a list of images.
        name : str, optional
            Of the new column.
        batch_size : int, optional
            Rows inferred together.
        max_pixels : int, optional
            Images with more pixels are not decoded.

        Raises
        ------
        ConfigError
            If an option is out of range.

        Examples
        --------
        >>> import numpy as np
        >>> from subtok_data import PatchSegmenter
        >>> column = SubobjectTokenizer(PatchSegmenter(32), size=64).as_column()
        >>> row = column({"image": [np.zeros((64, 64, 3), np.uint8)]})["subtok"][0]
        >>> sorted(row), row["error"]
        (['config_hash', 'error', 'key', 'records'], '')
        """
        from subtok_data.token_column import TokenColumn  # and with it pyarrow

        return TokenColumn(
            self,
            image_column=image_column,
            name=name,
            batch_size=batch_size,
            max_pixels=max_pixels,
        )

    def config(self) -> dict[str, Any]:
        """Everything that decides the tokens, as JSON values."""
        described = self.segmenter.config()
        if described is None:
            raise ConfigError(
                f"{self.segmenter.class_name} has no config(), or a part of it has none: give it "
                "one that returns its options as JSON values, so that stored tokens can be told "
                "apart"
            )
        return self._own_config(described)

    def _own_config(self, segmenter: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            **segmenter,
            "budget": asdict(self.budget),
            "order": self.order,
            "canvas": asdict(self.canvas),
        }

    @property
    def config_hash(self) -> str:
        """Sixteen hexadecimal digits that differ when the tokens may differ."""
        return hash_config(self.config())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write configuration and weights to a folder that :meth:`from_pretrained` reads.

        A segmenter of your own is named only: give it to :meth:`from_pretrained` again.
        Transformers' ``Trainer`` calls this at each checkpoint, for its ``data_collator``.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        described = self.segmenter.config()
        config = self._own_config(described or {"segmenter": self.segmenter.class_name})
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        self.segmenter.save_model(folder)

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Write the tokenizer to a repository of the Hugging Face hub, with weights and a card.

        Parameters
        ----------
        name : str
            ``"user/name"``; created if there is none. :meth:`from_pretrained` reads it.
        **options
            ``private``, ``token``, ``revision``, ``commit_message``, ``create_pr``, as
            ``huggingface_hub`` has them.

        Returns
        -------
        str
            Address of the commit.

        Raises
        ------
        ConfigError
            A segmenter of your own without ``config()``, or weights that are not safetensors.
        """
        card = model_card(
            "Partitions images into subobject tokens: every pixel is in exactly one.",
            [
                "from subtok_data import SubobjectTokenizer",
                'tokens = SubobjectTokenizer.from_pretrained("{{name}}")("photo.jpg")',
            ],
            {"config_hash": self.config_hash, **self.config()},
        )
        return upload_folder(self.save_pretrained, name, card, **options)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        segmenter: SegmenterLike | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> SubobjectTokenizer:
        """Read what :meth:`save_pretrained` or :meth:`push_to_hub` wrote.

        Parameters
        ----------
        name_or_folder : str or Path
            A folder, or ``"user/name"`` of the hub. Only configurations and safetensors are read.
        segmenter : Segmenter, optional
            In place of the saved one; needed where that is not one of the library's.
        device : str or torch.device, optional
            Where the boundary model runs.
        revision : str, optional
            Branch, tag or commit of the hub.
        token : str or bool, optional
            For private repositories; by default that of ``hf auth login``.

        Raises
        ------
        ConfigError
            If the folder holds no tokenizer, one of another format version, or one with a segmenter
            that the library does not know.
        WeightsError
            If it cannot be had from the hub.
        """
        remedy = "give a folder of save_pretrained, or a name of the hub"
        check_type("name_or_folder", name_or_folder, (str, Path), remedy)
        folder = Path(name_or_folder)
        if not folder.exists() and is_hub_id(name_or_folder):
            patterns = (CONFIG_FILE, "*/*.json", "*/*.safetensors")
            folder = download_folder(
                str(name_or_folder), patterns=patterns, revision=revision, token=token
            )
        file = folder / CONFIG_FILE
        if not file.is_file():
            raise ConfigError(
                f"no tokenizer in {str(name_or_folder)!r}: {CONFIG_FILE} is missing; give a folder "
                "of save_pretrained, or a name of the hub. A boundary model alone is "
                f"EPOCSegmenter({str(name_or_folder)!r})"
            )
        config: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        try:
            _refuse_other_format(config)
            if segmenter is None:
                segmenter = build_segmenter(config, folder, device)
        except ConfigError as error:
            raise ConfigError(f"{str(file)!r}: {error}") from error
        return cls._of(config, segmenter)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        segmenter: SegmenterLike | None = None,
        device: str | torch.device | None = None,
    ) -> SubobjectTokenizer:
        """Build the tokenizer that a configuration describes, such as that of stored tokens.

        Parameters
        ----------
        config : mapping
            What :meth:`config` returned.
        segmenter : Segmenter, optional
            The one that the configuration is of; needed where that has weights other than the
            packaged ones, or is none of the library's.
        device : str or torch.device, optional
            Where the boundary model runs.

        Raises
        ------
        ConfigError
            If the tokenizer would make other tokens: a configuration of another format version, or
            other weights or options of the segmenter.

        Examples
        --------
        >>> from subtok_data import PatchSegmenter, SubobjectTokenizer
        >>> config = SubobjectTokenizer(PatchSegmenter(16), size=64).config()
        >>> SubobjectTokenizer.from_config(config).config() == config
        True
        """
        _refuse_other_format(config)
        if segmenter is None:
            segmenter = build_without_weights(config, device)
        made = cls._of(config, segmenter)
        differing = compare_options(config, made.config())
        if differing is not None:
            raise ConfigError(
                f"the configuration has {differing[0]}, the segmenter {differing[1]}: give the one "
                "that it is of as segmenter=…"
            )
        return made

    @classmethod
    def _of(cls, config: Mapping[str, Any], segmenter: SegmenterLike) -> SubobjectTokenizer:
        return cls(
            segmenter,
            order=config["order"],
            size=config["canvas"]["size"],
            square=config["canvas"]["square"],
            full_decode=config["canvas"]["full_decode"],
            **config["budget"],
        )

    def __repr__(self) -> str:
        return (
            f"SubobjectTokenizer({self.segmenter!r}, {self.budget}, order={self.order!r}, "
            f"{self.canvas})"
        )


def hash_config(config: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of a configuration.

    Examples
    --------
    >>> hash_config({"size": 64, "order": "area"}) == hash_config({"order": "area", "size": 64})
    True
    """
    text = json.dumps(config, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _refuse_other_format(config: Mapping[str, Any]) -> None:
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"a configuration of format version {version}: this version of subtok_data reads "
            f"{FORMAT_VERSION}"
        )


def _refuse_unknown(unknown: Mapping[str, object]) -> None:
    """Raise ConfigError for options that no tokenizer has."""
    for name in unknown:
        known = [*inspect.signature(SubobjectTokenizer).parameters][:-1]
        remedy = similar_names(name, known) or f": it has {', '.join(known)}"
        raise ConfigError(f"SubobjectTokenizer has no option {name!r}{remedy}")
