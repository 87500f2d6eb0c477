"""``RegionDataset``: rows with regions to samples with prompts and one text for each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from subtok_data.arguments import check_choice
from subtok_data.data.datasets import Sample, SubobjectDataset, refuse_plain_flips
from subtok_data.data.regions.readers import RegionColumns
from subtok_data.data.regions.regions import Regions
from subtok_data.errors import ConfigError, PromptError, SampleError
from subtok_data.segment import Prompts, pixel_box

__all__ = [
    "COUNT_COLUMNS",
    "EmptyRule",
    "NoRegionError",
    "PromptKind",
    "RegionDataset",
    "as_boxes",
    "as_points",
]

EmptyRule = Literal["replace", "keep", "error"]
PromptKind = Literal["mask", "box", "point"]
COUNT_COLUMNS = ("regions_annotated", "regions_lost", "regions_capped")
"""Columns that a :class:`RegionDataset` adds to its samples: numbers of regions."""

_MASKED = "regions_masked"
"""Column between decoding and augmentation: which regions had a mask."""

_TEXTS, _ORDER, _POINTS = 1, 2, 3
"""What random numbers are for, so that no two uses share a stream."""


class NoRegionError(SampleError):
    """No region of a sample is left in the image."""


class RegionDataset(SubobjectDataset):
    """Wrap a dataset whose rows have regions with texts: region captions, classes, expressions.

    Each region becomes a prompt with one text. In training the text is drawn from the region's
    phrases, regions come in a new order, and no more than ``max_regions``; all by (seed, epoch,
    index), so that any number of workers gives the same. In evaluation every region comes, in
    order, with its first phrase, and all phrases stay in the columns.

    Parameters
    ----------
    dataset : dataset with ``len`` and integer indexing
        A reader of this package (:class:`CocoRegions`, :class:`PanopticRegions`,
        :class:`VisualGenomeRegions`, :class:`ReferringRegions`), a Hugging Face dataset, or any
        rows with regions.
    columns : RegionColumns, optional
        Where the regions of a row are; readers need none.
    train : bool, optional
        Training or evaluation.
    max_regions : int, optional
        In training: regions of a sample at most, a random choice of those left in the image.
    shuffle_regions : bool, optional
        In training: whether the order is new each time.
    prompt : {"mask", "box", "point"}, optional
        How a region is prompted: by its mask, with its box (box alone without a mask); by its box
        alone; or by a point of it, drawn from mask or box in training, in its middle in evaluation.
    min_side : float, optional
        In training: regions whose shorter side is below this many pixels after the transform are
        lost, as are those of whose mask nothing is left. In evaluation none is.
    empty : {"replace", "keep", "error"}, optional
        What a sample without a region does: another sample takes its place, listed among the
        replacements; it stays, with no region; or it is an error, as ``on_error`` has them. By
        default it is replaced in training and kept in evaluation.
    task : str, optional
        Value of a column ``task_type``, such as SCA's ``"caption"`` and ``"recognition"``.
    transform : callable, optional
        Called with ``{"image", "boxes", "points", "masks", "texts", "token_map"}``, what there is
        of it: torchvision's transforms v2. A plain horizontal flip is refused: take
        :class:`TextSafeHorizontalFlip`.
    **options
        ``image_column``, ``tokens``, ``on_error``, ``max_pixels``, ``seed`` as in
        :class:`~subtok_data.SubobjectDataset`.

    Notes
    -----
    Samples get the columns ``regions_annotated``, ``regions_lost`` (outside the image, or too
    small) and ``regions_capped``; the regions of a sample are what is left. In evaluation they also
    get ``region_ids`` and ``region_phrases``, lists that ``region_prompt`` of the batch indexes.

    Raises
    ------
    ConfigError
        Options that cannot work, a transform with a plain horizontal flip, a column that is
        missing.

    Examples
    --------
    >>> regions = [{"x": 4, "y": 2, "width": 20, "height": 10, "phrases": ["a cup", "a mug"]}]
    >>> rows = [{"image": np.zeros((40, 60, 3), np.uint8), "regions": regions}]
    >>> sample = RegionDataset(rows, train=False)[0]
    >>> sample.prompts[0].boxes.tolist(), sample.prompts[0].texts
    ([[4.0, 2.0, 24.0, 12.0]], ('a cup',))
    """

    augments_token_maps: ClassVar[bool] = False

    def __init__(
        self,
        dataset: Any,
        *,
        columns: RegionColumns | None = None,
        train: bool = True,
        max_regions: int | None = None,
        shuffle_regions: bool = True,
        prompt: PromptKind = "mask",
        min_side: float = 1.0,
        empty: EmptyRule | None = None,
        task: str | None = None,
        transform: Any = None,
        **options: Any,
    ) -> None:
        if options.get("prompts") is not None:
            raise ConfigError(
                "a RegionDataset makes prompts of its regions: give columns=, not prompts="
            )
        super().__init__(dataset, transform=transform, **options)
        refuse_plain_flips(transform)
        if max_regions is not None and (max_regions < 1 or not train):
            raise ConfigError(
                f"max_regions={max_regions}, train={train}: give at least 1, and in training only; "
                "evaluation takes all regions"
            )
        check_choice("prompt", prompt, get_args(PromptKind))
        if empty is not None:
            check_choice("empty", empty, get_args(EmptyRule))
        features: Any = getattr(self.dataset, "features", None)
        self.columns = (columns or RegionColumns()).with_names_of(features)
        self.train = train
        self.max_regions = max_regions
        self.shuffle_regions = shuffle_regions
        self.prompt: PromptKind = prompt
        self.min_side = min_side
        self.empty: EmptyRule = empty or ("replace" if train else "keep")
        self.task = task

    def get(self, index: int) -> Sample:
        """Return the sample at an index; one without a region may be replaced."""
        try:
            return super().get(index)
        except NoRegionError as error:
            if self.empty != "replace":
                raise
            return self.replacement(index, str(error))

    def decode(self, row: Any, index: int) -> Sample:
        """Decode the image of a row, and read its regions."""
        sample = super().decode(row, index)
        if sample.many:
            raise ConfigError(
                "a RegionDataset has one image a row, the image column holds a list: make one row "
                "per image"
            )
        try:
            regions = self.columns.read(sample.columns)
            prompts = self._prompts(regions, sample.source_sizes[0], index)
        except PromptError as error:
            raise SampleError.of(error, index=index, path=sample.path, stage="decode") from error
        sample.prompts = [prompts]
        # For load, which takes it out again.
        sample.columns = self._columns(sample.columns, regions) | {_MASKED: _masked(prompts)}
        return sample

    def load(self, index: int) -> Sample:
        """Decode and augment one sample, and choose its regions.

        Raises
        ------
        SampleError
            If it is bad; a ``NoRegionError`` if no region is left and ``empty`` is not
            ``"keep"``.
        """
        sample = super().load(index)
        (prompts,) = sample.prompts or [None]
        if prompts is None:
            raise ConfigError("the transform of a RegionDataset lost the prompts")
        left = self._visible(prompts, sample.columns.pop(_MASKED))
        chosen = self._chosen(left, index)
        annotated = sample.columns["regions_annotated"]
        if not len(chosen) and self.empty != "keep":
            raise NoRegionError(
                f"none of {annotated} regions is left in the image",
                index=index,
                path=sample.path,
                stage="decode",
            )
        sample.prompts = [self._as_prompt(chosen, index)]
        sample.columns["regions_lost"] = annotated - len(left)
        sample.columns["regions_capped"] = len(left) - len(chosen)
        return sample

    def _prompts(self, regions: Regions, size: tuple[int, int], index: int) -> Prompts:
        if self.prompt == "box" and not np.isnan(regions.boxes).any():
            regions = replace(regions, segmentations=None)  # never read: decoding them takes time
        if self.train:
            counts = np.array([len(phrases) for phrases in regions.phrases], np.int64)
            drawn = self._random(index, _TEXTS).random(len(regions)) * counts
            picks = drawn.astype(np.int64).tolist()
        else:
            picks = [0] * len(regions)
        texts = [phrases[pick] for phrases, pick in zip(regions.phrases, picks, strict=True)]
        return regions.prompts(size, texts, keep_all=not self.train)

    def _columns(self, columns: dict[str, Any], regions: Regions) -> dict[str, Any]:
        kept = {name: columns[name] for name in columns if name not in self.columns.names}
        added: dict[str, Any] = {"regions_annotated": len(regions)}
        if not self.train:
            added["region_ids"] = list(regions.ids or range(len(regions)))
            added["region_phrases"] = [list(phrases) for phrases in regions.phrases]
        if self.task is not None:
            added["task_type"] = self.task
        taken = sorted(set(kept) & {*added, *COUNT_COLUMNS})
        if taken:
            raise ConfigError(
                f"the rows have a column {taken[0]!r}, which a RegionDataset adds: rename it"
            )
        return kept | added

    def _visible(self, prompts: Prompts, masked: NDArray[np.int64]) -> Prompts:
        """Keep the regions that are large enough, and of whose mask something is left."""
        if not self.train or not len(prompts):
            return prompts
        # The corner of a box that is left of a slanted thing may show nothing of it.
        gone = np.isin(prompts.ids, masked) & ~prompts.has_mask
        bounds = prompts.bounds()
        sides = (bounds[:, 2:] - bounds[:, :2]).min(axis=1)
        return prompts.take(np.flatnonzero((sides >= self.min_side) & ~gone))

    def _chosen(self, prompts: Prompts, index: int) -> Prompts:
        if not self.train:
            return prompts
        order = self._random(index, _ORDER).permutation(len(prompts))[: self.max_regions]
        return prompts.take(order if self.shuffle_regions else np.sort(order))

    def _as_prompt(self, prompts: Prompts, index: int) -> Prompts:
        if self.prompt == "box":
            return as_boxes(prompts)
        if self.prompt == "point":
            return as_points(prompts, self._random(index, _POINTS) if self.train else None)
        return prompts

    def _random(self, index: int, use: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, index, use])


def _masked(prompts: Prompts) -> NDArray[np.int64]:
    """List the places in the row of the regions that have a mask."""
    return prompts.ids[prompts.has_mask]


def as_boxes(prompts: Prompts) -> Prompts:
    """Keep boxes alone; a region without a box gets that of its mask.

    Examples
    --------
    >>> mask = np.zeros((4, 6), bool)
    >>> mask[1:3, 2:5] = True
    >>> as_boxes(Prompts.of((4, 6), masks=[mask])).boxes.tolist()
    [[2.0, 1.0, 5.0, 3.0]]
    """
    if prompts.masks is None:
        return prompts
    return replace(prompts, boxes=prompts.bounds(), masks=None)


def as_points(prompts: Prompts, random: np.random.Generator | None = None) -> Prompts:
    """Replace box and mask by one point in each region.

    Parameters
    ----------
    prompts : Prompts
        P prompts with a box or a mask.
    random : numpy.random.Generator, optional
        Draws a pixel of the mask, or a place in the box. Without it the point is in the middle: the
        pixel farthest from the mask's outline (as SAM is evaluated), the centre of the box.

    Examples
    --------
    >>> prompts = as_points(Prompts.of((10, 10), boxes=[[2, 2, 6, 8]]))
    >>> prompts.points.tolist(), bool(np.isnan(prompts.boxes).all())
    ([[[4.0, 5.0]]], True)
    """
    points = np.zeros((len(prompts), 1, 2), np.float32)
    bounds = prompts.bounds()
    known = prompts.has_mask
    for region in range(len(prompts)):
        box = bounds[region]
        if prompts.masks is None or not known[region]:
            share = np.full(2, 0.5) if random is None else random.random(2)
            points[region, 0] = box[:2] + share * (box[2:] - box[:2])
            continue
        x0, y0, x1, y1 = pixel_box(box, prompts.size)
        inside = prompts.masks.mask(region)[y0:y1, x0:x1]
        y, x = _middle(inside) if random is None else _any_pixel(inside, random)
        points[region, 0] = (x0 + x + 0.5, y0 + y + 0.5)
    return replace(
        prompts,
        boxes=np.full((len(prompts), 4), np.nan, np.float32),
        points=points,
        labels=np.ones((len(prompts), 1), np.int8),
        masks=None,
    )


def _middle(mask: NDArray[np.bool_]) -> tuple[int, int]:
    depth = np.asarray(distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), mask.shape)
    return int(y), int(x)


def _any_pixel(mask: NDArray[np.bool_], random: np.random.Generator) -> tuple[int, int]:
    y, x = np.nonzero(mask)
    pick = int(random.integers(len(y)))
    return int(y[pick]), int(x[pick])
