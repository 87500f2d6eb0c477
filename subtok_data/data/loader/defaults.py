"""The parts of a loader: its collator, its dataset and its batches."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Iterable, Iterator
from copy import copy
from typing import Any, TypeVar, cast

from torch.utils.data import DataLoader, IterableDataset

from subtok_data.arguments import (
    check_count,
    check_number,
    check_type,
    compare_options,
    describe,
    similar_names,
)
from subtok_data.data.cache import TokenCache
from subtok_data.data.collation import SubobjectCollator, WorkerCollator
from subtok_data.data.datasets import MixedDataset, SubobjectDataset, SubobjectIterableDataset
from subtok_data.data.loader.batch_plan import BatchPlan
from subtok_data.data.loader.batch_sampler import SubobjectBatchSampler
from subtok_data.data.store import StoredTokens
from subtok_data.errors import ConfigError
from subtok_data.segmenters import Segmenter
from subtok_data.text import TextConfig
from subtok_data.tokenizer import SubobjectTokenizer

__all__ = [
    "batch_options",
    "check_options",
    "check_shared_memory",
    "choose_collator",
    "make_cache",
    "refuse_other_tokens",
    "stored_tokenizer",
    "wrap_dataset",
]

_Dataset = TypeVar("_Dataset", SubobjectDataset, SubobjectIterableDataset)
_TOKENIZER_REMEDY = "SubobjectLoader(dataset, SubobjectTokenizer(…))"
_PLACES = {
    SubobjectDataset: "SubobjectLoader(SubobjectDataset(dataset, {option}), …)",
    SubobjectCollator: "SubobjectLoader(…, collator=SubobjectCollator(tokenizer, {option}))",
    SubobjectTokenizer: "SubobjectLoader(dataset, SubobjectTokenizer({option}))",
}
"""Where an option goes that the loader does not have."""


def choose_collator(
    tokenizer: SubobjectTokenizer | None,
    collator: Any,
    collate_fn: Any,
    *,
    text: TextConfig | None,
    image_column: str | None,
    on_error: str | None,
) -> SubobjectCollator:
    """Return the collator that was given, or make one of a tokenizer.

    Options that are None were not given. Frameworks that build a loader anew give every option as
    the loader has it; beside a collator those are the collator's own.

    Raises
    ------
    ConfigError
        If the collator is another kind of function, or an option contradicts it.
    """
    if collate_fn is not None and collator is not None and collate_fn is not collator:
        raise ConfigError("collate_fn= and collator= name two collators: give only collator=")
    if tokenizer is not None:
        check_type("tokenizer", tokenizer, SubobjectTokenizer, _TOKENIZER_REMEDY)
    collator = collate_fn if collator is None else collator
    if collator is None:
        return SubobjectCollator(
            tokenizer or SubobjectTokenizer(),
            image_column="image" if image_column is None else image_column,
            text=text,
            on_error="raise" if on_error is None else on_error,
        )
    if isinstance(collator, WorkerCollator):
        raise ConfigError(
            "this collator was pickled, which leaves its model behind: build a SubobjectCollator "
            "in each process"
        )
    if not isinstance(collator, SubobjectCollator):
        raise ConfigError(
            f"the collator is {describe(collator)}: SubobjectLoader works with a "
            "SubobjectCollator; use a plain DataLoader for other collate functions"
        )
    if tokenizer is not None and tokenizer is not collator.tokenizer:
        raise ConfigError("tokenizer= and collator= name two tokenizers: give only the collator")
    asked = {"text": text, "image_column": image_column, "on_error": on_error}
    for name, value in asked.items():
        own = getattr(collator, name)
        if value is not None and value is not own and value != own:
            raise ConfigError(
                f"{name}={value!r} beside a collator that has {name}={own!r}: give it to the "
                f"collator, SubobjectCollator(…, {name}=…), or leave it out"
            )
    return collator


def stored_tokenizer(dataset: object) -> SubobjectTokenizer | None:
    """Build the tokenizer that made the stored tokens of a dataset; None if it has none.

    Raises
    ------
    ConfigError
        If it cannot be built from its configuration alone.
    """
    for tokens in _stored_tokens(dataset):
        try:
            return SubobjectTokenizer.from_config(tokens.config)
        except ConfigError as error:
            raise ConfigError(
                f"no tokenizer was given, and that of the tokens in {str(tokens.folder)!r} cannot "
                f"be built from their configuration ({error}): give the one that made them, "
                f"{_TOKENIZER_REMEDY}"
            ) from error
    return None


def refuse_other_tokens(dataset: object, tokenizer: SubobjectTokenizer) -> None:
    """Raise ConfigError if a dataset has stored tokens that another tokenizer has made."""
    for tokens in _stored_tokens(dataset):
        if tokens.config_hash == tokenizer.config_hash:
            continue
        have, want = compare_options(tokens.config, tokenizer.config()) or ("other options",) * 2
        raise ConfigError(
            f"{str(tokens.folder)!r} holds tokens with {have}, the tokenizer has {want}: leave the "
            "tokenizer out, and it is that of the tokens, or tokenize again. A collator takes "
            f"SubobjectTokenizer.from_config(StoredTokens({str(tokens.folder)!r}).config)"
        )


def _stored_tokens(dataset: object) -> Iterator[StoredTokens]:
    """Yield the stored tokens of a dataset, or of the parts of a mixture."""
    if isinstance(dataset, MixedDataset):
        for part in dataset.datasets:
            yield from _stored_tokens(part)
        return
    tokens: StoredTokens | None = None
    if isinstance(dataset, SubobjectDataset | SubobjectIterableDataset):
        tokens = dataset.tokens
    if tokens is not None:
        yield tokens


def wrap_dataset(
    dataset: Any, *, image_column: str, on_error: str, seed: int
) -> SubobjectDataset | SubobjectIterableDataset:
    """Wrap a dataset, stream or folder, unless it is one of ours already."""
    if isinstance(dataset, (SubobjectDataset, SubobjectIterableDataset)):
        return dataset
    if isinstance(dataset, os.PathLike):
        dataset = os.fsdecode(cast("os.PathLike[str]", dataset))
    streaming = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")
    wrapper = SubobjectIterableDataset if streaming else SubobjectDataset
    return wrapper(dataset, image_column=image_column, on_error=on_error, seed=seed)


def make_cache(
    cache: Any,
    cache_gb: float | None,
    dataset: SubobjectDataset | SubobjectIterableDataset,
    tokenizer: SubobjectTokenizer,
) -> tuple[SubobjectDataset | SubobjectIterableDataset, TokenCache | None]:
    """Open the cache of a loader, if it has one, and make the dataset use it.

    Returns
    -------
    dataset : SubobjectDataset or SubobjectIterableDataset
        With a cache a shallow copy, since other loaders of the dataset may have another one.
    tokens : TokenCache or None

    Raises
    ------
    ConfigError
        If the folder cannot be a cache, or the dataset cannot use one.
    """
    if cache is None:
        if cache_gb is not None:
            raise ConfigError(f"cache_gb={cache_gb} limits a cache: give cache=FOLDER too")
        return dataset, None
    tokens = TokenCache(cache, tokenizer, limit_gb=cache_gb)
    if isinstance(dataset, SubobjectIterableDataset):
        return _using(tokens, dataset), tokens
    using = _using(tokens, dataset)
    if isinstance(using, MixedDataset):
        using.datasets = [_using(tokens, part) for part in using.datasets]
    return using, tokens


def _using(tokens: TokenCache, dataset: _Dataset) -> _Dataset:
    """Return a dataset whose samples bring keys, and are augmented after tokenization."""
    if dataset.tokens is not None or dataset.tokens_column is not None:
        raise ConfigError(
            "cache= beside a dataset with stored tokens, tokens= or tokens_column=: they need no "
            "model already; leave out one of them"
        )
    using = copy(dataset)
    using.with_keys = True
    if using.transform is None:
        return using
    if isinstance(using, SubobjectIterableDataset) or not using.augments_token_maps:
        raise ConfigError(
            f"cache= beside transform= of a {type(using).__name__}, whose samples cannot be "
            "augmented once their tokens are made: store the tokens with `subtok tokenize SRC "
            "--out DIR`, and give tokens=DIR to the dataset, or leave out one of them"
        )
    if tokens.reader.by_prompts:
        raise ConfigError(
            "cache= beside transform= and a segmenter whose tokens depend on prompts: augmented "
            "prompts differ in each epoch, and so do their tokens; leave out one of them"
        )
    using.cache = tokens.reader
    return using


def check_options(
    *,
    dataset: object,
    segment_workers: object,
    prefetch_batches: object,
    num_workers: object,
    batch_size: object,
    seed: object,
    timeout_s: object,
    max_restarts: object,
    plan: object,
    unknown: Iterable[str],
) -> None:
    """Raise ConfigError for options of a loader that cannot work, or are those of something else.

    ``unknown`` are names that are no parameters of the loader; those of a DataLoader pass.
    """
    if isinstance(dataset, SubobjectTokenizer | SubobjectCollator | Segmenter):
        raise ConfigError(
            f"dataset is {describe(dataset)}: the dataset comes first, "
            "SubobjectLoader(dataset, tokenizer)"
        )
    check_count("segment_workers", segment_workers)
    check_count("prefetch_batches", prefetch_batches, least=0, optional=False)
    check_count("num_workers", num_workers, least=0, optional=False)
    check_count("batch_size", batch_size)
    check_count("seed", seed, least=0, optional=False)
    check_count("max_restarts", max_restarts, least=0, optional=False)
    check_number("timeout_s", timeout_s, above=0, unit="seconds")
    if plan is not None:
        check_type("plan", plan, BatchPlan, "give plan=BatchPlan(lengths=…, by_length=True)")
    known = inspect.signature(DataLoader).parameters
    owners = (SubobjectDataset, SubobjectCollator, SubobjectTokenizer)
    for name in unknown:
        if name in known:
            continue
        owner = next((o for o in owners if name in inspect.signature(o).parameters), None)
        if owner is None:
            raise ConfigError(
                f"SubobjectLoader has no option {name!r}"
                + similar_names(name, [*known, "prefetch_batches", "segment_workers", "executor"])
            )
        place = _PLACES[owner]
        raise ConfigError(
            f"{name}= belongs to {owner.__name__}: {place.format(option=f'{name}=…')}"
        )


def batch_options(
    dataset: SubobjectDataset | SubobjectIterableDataset,
    sampler: Any,
    batch_sampler: Any,
    batch_size: int | None,
    *,
    drop_last: bool,
    shuffle: bool,
    seed: int,
    plan: BatchPlan | None,
) -> dict[str, Any]:
    """Return the DataLoader options that say which samples form which batch.

    Raises
    ------
    ConfigError
        If a stream is to be shuffled or grouped here.
    """
    if isinstance(dataset, SubobjectIterableDataset):
        if plan is not None and plan.is_grouped:
            raise ConfigError("a stream cannot be grouped by length: its samples come as they come")
        if shuffle:
            raise ConfigError("a stream is shuffled by itself: dataset.shuffle(seed, buffer_size)")
        return {"batch_size": batch_size or 1, "drop_last": drop_last}
    if batch_sampler is not None:
        return {"batch_sampler": batch_sampler}
    return {
        "batch_sampler": SubobjectBatchSampler(
            len(dataset) if sampler is None else sampler,
            1 if batch_size is None else batch_size,
            drop_last,
            shuffle=shuffle,
            seed=seed,
            plan=plan,
            dataset=dataset,
        )
    }


def check_shared_memory(batches: int, batch_size: int, side: int) -> None:
    """Refuse batches that do not fit into the shared memory that workers send them through.

    Parameters
    ----------
    batches : int
        How many may be there at a time.
    batch_size : int
        Images of each.
    side : int
        Longest side of an image in pixels.

    Raises
    ------
    ConfigError
        Saying how much there is and how much is needed.
    """
    if not os.path.isdir("/dev/shm"):
        return
    needed = batches * batch_size * side * side * 3
    free = shutil.disk_usage("/dev/shm").free
    if needed > free:
        raise ConfigError(
            f"/dev/shm has {free / 1e6:.4g} MB free, but {batches} batches of {batch_size} images "
            f"of up to {side}×{side} pixels may need {needed / 1e6:.4g} MB on their way from the "
            "workers: enlarge it (docker run --shm-size=…), or lower num_workers, "
            "prefetch_factor or batch_size"
        )
