"""What a loader is put together from: collator, dataset and batches."""

from __future__ import annotations

import os
import shutil
from typing import Any

from torch.utils.data import IterableDataset

from subtok_data.data.collation import SubobjectCollator
from subtok_data.data.datasets import SubobjectDataset, SubobjectIterableDataset
from subtok_data.data.loader.batch_sampler import BatchPlan, SubobjectBatchSampler
from subtok_data.errors import ConfigError
from subtok_data.text import TextConfig
from subtok_data.tokenizer import SubobjectTokenizer

__all__ = ["batch_options", "check_shared_memory", "choose_collator", "wrap_dataset"]


def choose_collator(
    collator: Any,
    tokenizer: SubobjectTokenizer | None,
    *,
    text: TextConfig | None,
    image_column: str,
    on_error: str,
) -> SubobjectCollator:
    """Return the collator that was given, or one of a tokenizer.

    Raises
    ------
    ConfigError
        If the collator is another kind of function, or has another tokenizer.
    """
    if collator is None:
        return SubobjectCollator(
            tokenizer or SubobjectTokenizer(),
            image_column=image_column,
            text=text,
            on_error=on_error,
        )
    if not isinstance(collator, SubobjectCollator):
        raise ConfigError(
            f"collate_fn is a {type(collator).__name__}: SubobjectLoader works with a "
            "SubobjectCollator; use a plain DataLoader for other collate functions"
        )
    if tokenizer is not None and tokenizer is not collator.tokenizer:
        raise ConfigError("tokenizer= and collator= name two tokenizers: give only the collator")
    return collator


def wrap_dataset(
    dataset: Any, *, image_column: str, on_error: str, seed: int
) -> SubobjectDataset | SubobjectIterableDataset:
    """Make a dataset one of ours; those that are stay as they are."""
    if isinstance(dataset, (SubobjectDataset, SubobjectIterableDataset)):
        return dataset
    streaming = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")
    wrapper = SubobjectIterableDataset if streaming else SubobjectDataset
    return wrapper(dataset, image_column=image_column, on_error=on_error, seed=seed)


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
    """DataLoader options that say which samples form which batch.

    Raises
    ------
    ConfigError
        If a stream shall be shuffled or grouped here.
    """
    if isinstance(dataset, SubobjectIterableDataset):
        if plan is not None and (plan.by_length or plan.max_batch_length is not None):
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
            f"/dev/shm has {free / 1e6:.0f} MB free, but {batches} batches of {batch_size} images "
            f"of up to {side}×{side} pixels may need {needed / 1e6:.0f} MB on their way from the "
            "workers: enlarge it (docker run --shm-size=…), or lower num_workers, "
            "prefetch_factor or batch_size"
        )
