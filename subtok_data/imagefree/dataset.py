"""``ImageFreeDataset``: artificial token maps from category words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from subtok_data.arguments import check_choice, check_count
from subtok_data.batch import pad_tokens
from subtok_data.data import shared_epoch
from subtok_data.errors import ConfigError
from subtok_data.imagefree.regions import DrawnRegions, resize_nearest
from subtok_data.imagefree.sources import GridSource, RegionSource, StoredSource
from subtok_data.imagefree.words import CategoryWords, Prompt, check_categories
from subtok_data.segment import Segmented

if TYPE_CHECKING:
    from subtok_data.data import StoredTokens

__all__ = ["ImageFreeDataset", "ImageFreeSample", "Tokens"]

Tokens = Literal["patch", "region"]
Size = tuple[int, int]


@dataclass(frozen=True, eq=False, slots=True)
class ImageFreeSample:
    """One artificial label map, before it is drawn at any size: a few kilobytes.

    Attributes
    ----------
    index : int
        Number of the sample.
    regions : DrawnRegions
        Its regions.
    classes : (n,) int32 array
        Category of each region.
    """

    index: int
    regions: DrawnRegions
    classes: NDArray[np.int32]

    def class_map(self, size: Size, out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """Draw the category of each pixel at ``size`` pixels, (H, W) int32."""
        labels = self.regions.labels
        if labels.shape == size:
            from subtok_data.segment import relabel

            classes = np.empty(size, np.int32) if out is None else out
            source = np.require(labels, requirements=["C", "W"])
            relabel(source, self.classes.astype(np.int64), classes)
            return classes
        if labels.size > size[0] * size[1]:
            labels = resize_nearest(labels, size)  # the smaller map is looked up
        return resize_nearest(self.classes[labels], size, out)


class ImageFreeDataset(Dataset[ImageFreeSample]):
    """Artificial segmentation data from category words alone (IFSeg, arXiv 2303.14396).

    Each sample is a random grid of random categories, resized to the nearest cell: to the grid of
    patches that a model sees, and to the pixels that it is trained on. Sample ``index`` depends on
    (seed, epoch, index) alone, so it is the same for any batch size, rank and number of workers. No
    image is read, decoded or made, and no image library is imported.

    Parameters
    ----------
    categories : sequence of str
        M category words, drawn uniformly with replacement. ``"unknown"`` is appended as number M:
        it has words and an embedding, is never drawn, and marks what the loss ignores.
    tokenizer : transformers tokenizer, optional
        Turns words into sub-words. Without it batches hold categories as numbers only.
    num_samples : int, optional
        Samples per epoch; None for an endless stream. By default what IFSeg sees in its 2,000
        steps of 16.
    grid : (int, int), optional
        Fewest and most cells along each axis. ``(32, 32)`` draws every cell of the input on its
        own (the option of IFSeg's code without random grids).
    shapes : StoredTokens, str or Path, optional
        Take the shapes of real tokens, as ``subtok tokenize`` stored them, instead of grids: one
        category per token.
    tokens : {"patch", "region"}, optional
        What a visual token is. ``"patch"``: one cell of the input grid, as IFSeg's model sees it;
        always ``input_size``² tokens. ``"region"``: one region that a category was drawn for, a
        cell of the random grid or a stored token, whatever its size; neighbours of equal category
        stay apart, as real tokens of one object do.
    input_size : int or (int, int), optional
        Patches along each axis.
    target_size : int or (int, int), optional
        Pixels of token map and target.
    prompt : {"paper", "code"}, optional
        Form of the prompt, see :class:`~subtok_data.imagefree.CategoryWords`.
    bucket_size : int, optional
        Columns that position ids reckon with: 1 + row · bucket_size + column (OFA's 42).
    pad_to_multiple_of : int, optional
        Round the number of tokens up to a multiple of this.
    seed : int, optional
        Seed of all samples.

    Raises
    ------
    ConfigError
        If an argument is out of range, or sizes do not go together.

    Notes
    -----
    The target is not the input enlarged: both are made from the grid, as in IFSeg's code, and where
    the cells of the grid do not divide the input they differ at the borders of cells. The input is
    the target's upper left pixel of each patch, wherever patches divide the target.

    Examples
    --------
    >>> dataset = ImageFreeDataset(["giraffe", "grass", "sky"], target_size=64)
    >>> batch = dataset.collate([dataset[0], dataset[1]])
    >>> batch["visual_token_class"].shape, batch["visual_class_map"].shape
    (torch.Size([2, 1024]), torch.Size([2, 64, 64]))
    """

    def __init__(
        self,
        categories: Sequence[str],
        tokenizer: Any = None,
        *,
        num_samples: int | None = 32_000,
        grid: tuple[int, int] = (1, 32),
        shapes: StoredTokens | str | Path | None = None,
        tokens: Tokens = "patch",
        input_size: int | Size = 32,
        target_size: int | Size = 512,
        prompt: Prompt = "paper",
        bucket_size: int = 42,
        pad_to_multiple_of: int = 1,
        seed: int = 0,
    ) -> None:
        check_choice("tokens", tokens, get_args(Tokens))
        check_count("num_samples", num_samples)
        check_count("pad_to_multiple_of", pad_to_multiple_of, optional=False)
        check_count("seed", seed, least=0, optional=False)
        self.categories = check_categories(categories)
        self.words = (
            None if tokenizer is None else CategoryWords(categories, tokenizer, prompt=prompt)
        )
        self.num_samples = num_samples
        self.source: RegionSource = GridSource(*grid) if shapes is None else StoredSource(shapes)
        self.tokens = tokens
        self.input_size = _size("input_size", input_size)
        self.target_size = _size("target_size", target_size)
        _check_fits(self.input_size, self.target_size, None if shapes is not None else grid[1])
        check_count("bucket_size", bucket_size, least=self.input_size[1], optional=False)
        self.bucket_size = bucket_size
        self.pad_to_multiple_of = pad_to_multiple_of
        self.seed = seed
        # In shared memory, so that set_epoch reaches workers that live through several epochs.
        self._epoch = shared_epoch()
        patches = DrawnRegions.grid(*self.input_size)
        self._patch_map = patches.token_map(self.target_size)
        self._patch_geometry = patches.measure(self.target_size)

    def __len__(self) -> int:
        if self.num_samples is None:
            raise TypeError("an endless ImageFreeDataset has no length: give num_samples=…")
        return self.num_samples

    @property
    def ignore_index(self) -> int:
        """Category that the loss ignores: M, the number of ``unknown``."""
        return len(self.categories)

    @property
    def epoch(self) -> int:
        """Epoch that keys the samples."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Give other samples, in living workers too."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> ImageFreeSample:
        index = int(index)
        if index < 0 or (self.num_samples is not None and index >= self.num_samples):
            limit = "" if self.num_samples is None else f" of {self.num_samples}"
            raise IndexError(f"there is no sample {index}{limit}: they count from 0")
        random = np.random.default_rng([self.seed, self.epoch, index])
        regions = self.source.draw(random, self.target_size)
        classes = random.integers(len(self.categories), size=regions.count, dtype=np.int16)
        return ImageFreeSample(index, regions, classes.astype(np.int32))

    def collate(self, samples: Sequence[ImageFreeSample]) -> dict[str, Tensor]:
        """Draw samples and stack them into a batch.

        Parameters
        ----------
        samples : sequence of ImageFreeSample
            I samples; N is the largest number of tokens, S the sum, U that of sub-words.

        Returns
        -------
        dict of str to Tensor
            Keys of the batch contract (``docs/batch_format.md``): visual ones with
            ``visual_token_class``; ``visual_class_map`` (I, Hc, Wc) int32; ``visual_position_ids``
            and ``visual_type_ids`` (I, N) int64; and with a tokenizer ``visual_word_ids`` (U,),
            ``visual_word_offsets`` (S,), ``prompt_input_ids`` and ``prompt_attention_mask`` (I, P)
            int64.
        """
        if not samples:
            raise ValueError("cannot collate a batch of 0 samples")
        segmented = [self._segmented(sample) for sample in samples]
        batch = pad_tokens(segmented, pad_to_multiple_of=self.pad_to_multiple_of)
        targets = torch.empty((len(samples), *self.target_size), dtype=torch.int32)
        for sample, target in zip(samples, targets.numpy(), strict=True):
            sample.class_map(self.target_size, out=target)
        batch["visual_class_map"] = targets
        batch["visual_position_ids"] = self._positions(batch)
        batch["visual_type_ids"] = batch["visual_token_mask"].long()
        if self.words is not None:
            classes = np.concatenate([one.token_fields["class"] for one in segmented])
            ids, offsets = self.words.bags(classes)
            batch["visual_word_ids"] = torch.from_numpy(ids)
            batch["visual_word_offsets"] = torch.from_numpy(offsets)
            prompt = torch.from_numpy(self.words.prompt_ids)
            batch["prompt_input_ids"] = prompt.repeat(len(samples), 1)
            batch["prompt_attention_mask"] = torch.ones_like(batch["prompt_input_ids"])
        batch["sample_index"] = torch.tensor([sample.index for sample in samples])
        return batch

    def _positions(self, batch: dict[str, Tensor]) -> Tensor:
        """Place of each token in the input grid, as OFA numbers it; 0 on padding."""
        mask = batch["visual_token_mask"]
        if self.tokens == "patch":
            patch = torch.arange(mask.shape[1])
            row, column = patch // self.input_size[1], patch % self.input_size[1]
        else:
            scale = torch.tensor(self.input_size, dtype=torch.float32)
            row, column = (batch["visual_token_centers"] * scale).long().unbind(-1)
        return torch.where(mask, row * self.bucket_size + column + 1, 0)

    def _segmented(self, sample: ImageFreeSample) -> Segmented:
        """Tokens of a sample, with their categories."""
        regions = sample.regions
        if self.tokens == "region":
            token_map = regions.token_map(self.target_size)
            geometry = regions.measure(self.target_size)
            return Segmented(token_map, regions.count, geometry, {"class": sample.classes})
        classes = sample.class_map(self.input_size).reshape(-1)
        return Segmented(self._patch_map, len(classes), self._patch_geometry, {"class": classes})

    def describe(self) -> dict[str, Any]:
        """Plain values that say which samples there are: part of a loader's saved state."""
        return {
            "categories": list(self.categories),
            "num_samples": self.num_samples,
            **self.source.describe(),
            "input_size": list(self.input_size),
            "target_size": list(self.target_size),
            "tokens": self.tokens,
            "seed": self.seed,
        }


def _size(name: str, value: int | Size) -> Size:
    height, width = (value, value) if isinstance(value, int) else value
    for side in (height, width):
        check_count(name, side, optional=False)
    return height, width


def _check_fits(patches: Size, pixels: Size, cells: int | None) -> None:
    for axis in range(2):
        if pixels[axis] < patches[axis]:
            raise ConfigError(
                f"target_size={pixels} is smaller than input_size={patches}: patches need a pixel"
            )
        if cells is not None and pixels[axis] < cells:
            raise ConfigError(
                f"grids of up to {cells} cells do not fit target_size={pixels}: cells need a pixel"
            )
