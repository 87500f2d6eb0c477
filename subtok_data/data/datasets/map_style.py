"""``SubobjectDataset``: map-style datasets of images to decoded samples."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, overload

from torch.utils.data import Dataset

from subtok_data.arguments import describe
from subtok_data.data.cache import CacheReader
from subtok_data.data.dataloader_workers import shared_epoch
from subtok_data.data.datasets.augmentation import augment, keyed_randomness
from subtok_data.data.datasets.prompt_columns import PromptColumns
from subtok_data.data.datasets.sample import ColumnError, Sample, decode_row, split_row
from subtok_data.data.datasets.sources import as_rows, check_options, name_dataset, open_options
from subtok_data.data.replacement import (
    MAX_REPLACEMENTS,
    Replacement,
    advise_replacement,
    candidates,
    register_source,
)
from subtok_data.data.store import Storage, StoredTokens, TokenFinder
from subtok_data.errors import SampleError
from subtok_data.images import DEFAULT_MAX_PIXELS, join_keys, pixel_key, read_with_key, to_rgb

__all__ = ["SubobjectDataset", "own_decoding", "row_key"]

Transform = Callable[..., Any]


def own_decoding(dataset: Any, image_column: str) -> Any:
    """Turn off the decoding of Hugging Face datasets, so that errors, EXIF and limits are ours."""
    datasets = sys.modules.get("datasets")
    if datasets is None or not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        return dataset
    features: Any = dataset.features
    if features is None:
        return dataset
    if image_column not in features:
        raise ColumnError(
            f"no image column {image_column!r}: the dataset has {sorted(features)}. "
            "Name the image column with image_column=…"
        )
    formatting: Any = getattr(dataset, "format", None)
    if formatting is not None and formatting.get("type") is not None:
        return dataset  # with_transform and with_format see what they were written for
    feature = features[image_column]
    if isinstance(feature, datasets.Image) and feature.decode:
        return dataset.cast_column(image_column, datasets.Image(decode=False))
    inner: Any = getattr(feature, "feature", None)
    if isinstance(inner, datasets.Image) and inner.decode:
        undecoded = datasets.List(datasets.Image(decode=False))
        return dataset.cast_column(image_column, undecoded)
    return dataset


def row_key(samples: SubobjectDataset, index: int) -> bytes | None:
    """Return the key of the images of a row, without decoding those that are files.

    Returns
    -------
    bytes or None
        None if a file cannot be opened, or an image without a file not be decoded.

    Examples
    --------
    >>> row_key(SubobjectDataset([b"any bytes"]), 0).hex()[:8]
    '23914a83'
    """
    try:
        value, _ = split_row(samples.dataset[index], samples.image_column)
        values: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
        keys: list[bytes] = []
        for one in values:
            content, key = read_with_key(one)
            if key is None:
                key = pixel_key(to_rgb(content, max_pixels=samples.max_pixels))
            keys.append(key)
    except (SampleError, OSError, ValueError, TypeError):
        return None
    return join_keys(keys)


class SubobjectDataset(Dataset[Sample]):
    """Wrap a map-style dataset: decoded, optionally augmented samples; never tokens.

    Parameters
    ----------
    dataset : dataset with ``len`` and integer indexing, or str or Path
        Hugging Face ``Dataset``, torchvision dataset, ``Subset``, ``ConcatDataset``, list … Rows
        may be dicts, ``(image, label)`` tuples, or images. A folder becomes
        :class:`~subtok_data.ImageFiles`.
    image_column : str, optional
        Key of the image in dict rows. A column of lists gives several images per sample.
    transform : callable, optional
        Live augmentation before tokenization, on a ``tv_tensors.Image`` (and ``Mask``); its random
        numbers are keyed by (seed, epoch, index), so that workers do not change them.
    prompts : PromptColumns, optional
        Columns that hold regions of the image: boxes, points, masks, texts. They are augmented
        with the image, and become ``sample.prompts`` instead of columns.
    tokens : str, Path, Storage or StoredTokens, optional
        Folder or URI (``s3://``, ``gs://``, ``hf://datasets/USER/NAME``) that ``subtok tokenize``
        wrote to: samples then bring their token maps, and need no model. Rows take the tokens that
        were made from their image, wherever these lie, so that they may be a part of what was
        tokenized, in any order, or several rows an image.
    tokens_column : str, optional
        Column that :meth:`SubobjectTokenizer.as_column` made, instead of ``tokens``.
    check_keys : bool, default True
        Whether tokens are found by the SHA-256 of the image's file or pixels; an image without
        stored tokens is a bad image. If not, row k has the tokens of row k, whatever it shows, and
        the dataset must have the length of what was tokenized.
    on_error : {"raise", "replace"}, optional
        What a bad image does: raise a :class:`~subtok_data.errors.SampleError`, or give another
        sample, chosen by (seed, index), counted and listed.
    max_pixels : int, optional
        Images with more pixels are refused before they are decoded.
    seed : int, optional
        Seed of augmentation and replacement.

    Raises
    ------
    ConfigError
        If the dataset is empty, has no length or several splits, an option is of another type, or
        the image column is missing.

    Examples
    --------
    >>> import numpy as np
    >>> rows = [{"image": np.zeros((40, 60, 3), np.uint8), "label": 3}]
    >>> sample = SubobjectDataset(rows)[0]
    >>> sample.image.shape, sample.columns, sample.index
    ((40, 60, 3), {'label': 3}, 0)
    """

    with_keys: bool = False
    """Whether samples bring the key of their images."""
    cache: CacheReader | None = None
    """Set by a loader: augmentation then comes after tokenization, as with stored tokens."""

    augments_token_maps: ClassVar[bool] = True
    """Whether ``transform`` can move the token map with the image, once that is made."""

    def __init__(
        self,
        dataset: Any,
        *,
        image_column: str = "image",
        transform: Transform | None = None,
        prompts: PromptColumns | None = None,
        tokens: str | Path | Storage | StoredTokens | None = None,
        tokens_column: str | None = None,
        check_keys: bool = True,
        on_error: str = "raise",
        max_pixels: int = DEFAULT_MAX_PIXELS,
        seed: int = 0,
    ) -> None:
        check_options(
            image_column=image_column,
            transform=transform,
            prompts=prompts,
            on_error=on_error,
            max_pixels=max_pixels,
            seed=seed,
        )
        self.dataset = own_decoding(as_rows(dataset), image_column)
        self.image_column = image_column
        self.transform = transform
        self.prompts = prompts
        self.tokens = open_options(tokens, tokens_column)
        self.tokens_column = tokens_column
        self.with_keys = (tokens is not None or tokens_column is not None) and check_keys
        self.on_error = on_error
        self.max_pixels = max_pixels
        self.seed = seed
        self._epoch = shared_epoch()
        self._finder: TokenFinder | None = None
        if self.tokens is not None:
            self._finder = TokenFinder(self.tokens, len(self.dataset))
            if not check_keys:
                self.tokens.check_length(len(self.dataset))
        self._key = register_source(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._key = register_source(self, state["_key"])

    def __len__(self) -> int:
        return len(self.dataset)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({name_dataset(self.dataset)}, {len(self)} samples)"

    @property
    def epoch(self) -> int:
        """Epoch that keys the augmentation."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Change the augmentation of the coming epoch, in living workers too."""
        self._epoch.fill_(epoch)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """Return a sample, or the list of samples of a slice."""
        if isinstance(index, slice):
            return [self.get(one) for one in range(*index.indices(len(self)))]
        try:
            index = operator.index(index)
        except TypeError:
            raise TypeError(
                f"index is {describe(index)}: give a whole number or a slice; for chosen samples "
                "take torch.utils.data.Subset(dataset, indices)"
            ) from None
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        return self.get(index % len(self))

    def get(self, index: int) -> Sample:
        """Return the sample at an index from 0 on, or what stands in for it."""
        replace = self.on_error == "replace"
        try:
            return self._load_good(index) if replace else self.load(index)
        except SampleError as error:
            if not replace:
                advise_replacement(error)
                raise
            return self.replacement(index, str(error))

    def _load_good(self, index: int) -> Sample:
        """Load a sample whose images can be decoded."""
        sample = self.load(index)
        sample.check()
        return sample

    def load(self, index: int) -> Sample:
        """Decode and augment one sample; raises :class:`SampleError` if it is bad."""
        try:
            row = self.dataset[index]
        except (OSError, ValueError) as error:
            # Datasets that decode on their own fail here.
            raise SampleError(str(error), index=index, stage="decode") from error
        sample = self.decode(row, index)
        sample.dataset_key = self._key
        if self._finder is not None:
            sample.attach(self._finder.tokens, partial(self._finder.at, index))
        elif self.tokens_column is not None:
            sample.attach_column(self.tokens_column)
        elif self.cache is not None and self.transform is not None:
            sample.attach_cached(self.cache)
            if sample.awaits_tokens:
                return sample
        if self.transform is not None:
            with keyed_randomness(self.seed, self.epoch, index):
                augment(sample, self.transform)
        return sample

    def decode(self, row: Any, index: int) -> Sample:
        """Decode a row, before stored tokens and augmentation; override it for other kinds of row.

        Parameters
        ----------
        row : mapping, tuple or image
            Of the wrapped dataset.
        index : int
            Its index.

        Raises
        ------
        SampleError
            If the row cannot be decoded.
        """
        return decode_row(
            row,
            image_column=self.image_column,
            index=index,
            max_pixels=self.max_pixels,
            prompts=self.prompts,
            with_key=self.with_keys,
        )

    def replacement(self, index: int, reason: str) -> Sample:
        """Return a good sample in place of a bad one, the same one every time.

        Parameters
        ----------
        index : int
            Dataset index of the bad sample.
        reason : str
            Why it is bad; kept in ``sample.replaced``.

        Raises
        ------
        SampleError
            If ``MAX_REPLACEMENTS`` other samples are bad as well.
        """
        for sample in self.replacements(index, reason):
            return sample
        raise SampleError(
            f"{reason}; and {MAX_REPLACEMENTS} samples tried in its place are bad too", index=index
        )

    def replacements(self, index: int, reason: str) -> Iterator[Sample]:
        """Yield good samples that may stand in for a bad one, the same ones every time.

        Parameters
        ----------
        index : int
            Dataset index of the bad sample.
        reason : str
            Why it is bad; kept in ``sample.replaced``.
        """
        for other in candidates(self.seed, index, len(self)):
            try:
                sample = self._load_good(other)
            except SampleError:
                continue
            sample.replaced = (Replacement(index, other, reason),)
            yield sample
