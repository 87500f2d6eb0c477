"""Encode the texts of regions as token ids, one short sequence each, padded to one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from subtok_data.batch import IGNORE_INDEX
from subtok_data.errors import ConfigError, SampleError
from subtok_data.text.rows import TextRow, pad_rows

__all__ = ["RegionRow", "RegionText", "layout_regions", "region_text_loss"]

_SCA_TASKS = ("recognition", "caption")


@dataclass(frozen=True)
class RegionText:
    """How the texts of regions become token ids.

    By default ``[bos] text eos``: ``bos`` where the tokenizer begins every text with it, and every
    token but that one supervised. What comes before, such as the vector of the region's token, is
    the model's.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Any transformers tokenizer with an end token; it is not changed.
    max_length : int, optional
        Limit of a row, ``bos`` and ``eos`` included; longer texts are truncated, ``eos`` stays.
    bos : bool, optional
        Begin with the tokenizer's ``bos``; by default if it does so itself.
    supervise_bos : bool, optional
        Let the last position of what the model puts before the text predict ``bos``.
    pad_to_multiple_of : int, optional
        Row lengths are rounded up to this.
    ignored_labels : int, optional
        Columns of −100 in front of ``region_labels``, for models that shift labels against their
        last logits.
    tasks : sequence of str, optional
        Names of tasks: then ``region_task`` holds the place of each region's task among them.
    task_column : str, optional
        Column of the dataset that names the task of a row.

    Raises
    ------
    ConfigError
        A tokenizer without an end token, or a value out of its range.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> words = SimpleNamespace(eos_token_id=2, bos_token_id=None, pad_token_id=0)
    >>> RegionText(words, max_length=12).max_length
    12
    >>> RegionText.sca(words).ignored_labels
    1
    """

    tokenizer: Any
    max_length: int | None = None
    bos: bool | None = None
    supervise_bos: bool = False
    pad_to_multiple_of: int = 1
    ignored_labels: int = 0
    tasks: tuple[str, ...] = ()
    task_column: str = "task_type"

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(
                "the tokenizer has no end token, so a model would never stop: set "
                "tokenizer.eos_token"
            )
        if self.bos and self.tokenizer.bos_token_id is None:
            raise ConfigError("bos=True, but the tokenizer has no bos token")
        least = 2 + len(self._begin())
        if self.max_length is not None and self.max_length < least:
            raise ConfigError(
                f"max_length={self.max_length} has no room for a word: bos and eos take "
                f"{least - 1}, give at least {least}"
            )
        if self.pad_to_multiple_of < 1:
            raise ConfigError(f"pad_to_multiple_of={self.pad_to_multiple_of}: give at least 1")
        if self.ignored_labels < 0:
            raise ConfigError(f"ignored_labels={self.ignored_labels}: give 0 or more")

    @classmethod
    def sca(cls, tokenizer: Any, *, max_length: int = 20, **options: Any) -> RegionText:
        """Return the sequence of Segment and Caption Anything (arXiv 2312.00869).

        The model's sequence is 6 task tokens, 8 query tokens, text. The text has at most
        ``max_length`` − 2 tokens, among them ``bos`` where the tokenizer begins every text with it
        (Llama's does, GPT-2's does not), then ``eos``; ``region_labels`` are its ids, with −100 on
        padding and one −100 more in front, so (R, 1 + Lr). The published loss takes the last
        1 + Lr logits and shifts by one: the last query predicts the first token. ``region_task`` is
        0 for a row of task ``"recognition"``, 1 for ``"caption"``.
        """
        if max_length < 3:
            raise ConfigError(f"max_length={max_length}: give at least 3")
        return cls(
            tokenizer,
            max_length=max_length - 1,
            supervise_bos=True,
            ignored_labels=1,
            tasks=_SCA_TASKS,
            **options,
        )

    @property
    def pad_id(self) -> int:
        """Token on padding; without a pad token any will do, the mask hides it."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def encode(self, texts: Sequence[str], row: Mapping[str, Any]) -> list[RegionRow]:
        """Encode the texts of one row of a dataset as token ids.

        Parameters
        ----------
        texts : sequence of str
            One per region.
        row : mapping
            Columns of the dataset, for the task.

        Raises
        ------
        SampleError
            A text that has no token, or a task that is not among ``tasks``.
        """
        task = self._task(row)
        if not texts:
            return []
        begin = self._begin()
        given = 0 if self.supervise_bos else len(begin)
        room = None if self.max_length is None else self.max_length - len(begin) - 1
        output = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)
        rows: list[RegionRow] = []
        for text, ids in zip(texts, output["input_ids"], strict=True):
            if not ids:
                raise SampleError(f"the region text {text!r} has no token: give words")
            whole = [*begin, *ids[:room], int(self.tokenizer.eos_token_id)]
            rows.append(RegionRow(np.array(whole, np.int64), given, task))
        return rows

    def _begin(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        if self.bos is False or bos is None:
            return []
        starts = self.tokenizer("a", verbose=False)["input_ids"][:1] == [bos]
        return [int(bos)] if self.bos or starts else []

    def _task(self, row: Mapping[str, Any]) -> int:
        if not self.tasks:
            return -1
        name = row.get(self.task_column)
        if name not in self.tasks:
            raise SampleError(
                f"column {self.task_column!r} is {name!r}: expected one of {list(self.tasks)}; "
                "RegionDataset(…, task=…) sets it"
            )
        return self.tasks.index(name)


@dataclass(frozen=True, slots=True, eq=False)
class RegionRow:
    """Token ids of one region's text.

    Attributes
    ----------
    input_ids : (L,) int64 array
        Token ids.
    given : int
        How many of the first are given to the model, not supervised.
    task : int
        Number of the task, −1 for none.
    """

    input_ids: NDArray[np.int64]
    given: int
    task: int


def layout_regions(config: RegionText, rows: Sequence[RegionRow]) -> dict[str, Tensor]:
    """Pad the texts of all regions of a batch.

    Parameters
    ----------
    config : RegionText
        How.
    rows : sequence of RegionRow
        R regions, in the order of the batch.

    Returns
    -------
    dict of str to Tensor
        ``region_input_ids``, ``region_attention_mask`` (R, Lr), ``region_labels``
        (R, ``ignored_labels`` + Lr), and with tasks ``region_task`` (R,): int64. Lr is 0 without
        regions.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> words = SimpleNamespace(eos_token_id=2, bos_token_id=None, pad_token_id=0)
    >>> rows = [RegionRow(np.array([5, 6, 2]), 0, 1), RegionRow(np.array([7, 2]), 0, 1)]
    >>> batch = layout_regions(RegionText.sca(words), rows)
    >>> batch["region_input_ids"].tolist(), batch["region_labels"].tolist()
    ([[5, 6, 2], [7, 2, 0]], [[-100, 5, 6, 2], [-100, 7, 2, -100]])
    >>> batch["region_task"].tolist()
    [1, 1]
    """
    none = np.zeros(0, np.int64)
    padded = pad_rows(
        [TextRow(row.input_ids, row.input_ids, np.zeros_like(row.input_ids)) for row in rows],
        config.pad_id,
        pad_to_multiple_of=config.pad_to_multiple_of,
    )
    ids, mask = padded["input_ids"], padded["attention_mask"]
    given = torch.from_numpy(np.array([row.given for row in rows], np.int64) if rows else none)
    # A first token that follows the region is supervised, unlike the first of a row of its own.
    supervised = (mask == 1) & (torch.arange(ids.shape[1])[None] >= given[:, None])
    labels = torch.where(supervised, ids, IGNORE_INDEX)
    batch = {
        "region_input_ids": ids,
        "region_attention_mask": mask,
        "region_labels": functional.pad(labels, (config.ignored_labels, 0), value=IGNORE_INDEX),
    }
    if config.tasks:
        batch["region_task"] = torch.tensor([row.task for row in rows], dtype=torch.int64)
    return batch


def region_text_loss(
    logits: Tensor, region_labels: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Compute the mean next-token loss of region texts behind any prefix.

    Parameters
    ----------
    logits : (R, S, V) Tensor
        Of the whole sequence: prefix, then text of length Lr.
    region_labels : (R, Lr) or (R, 1 + Lr) Tensor
        As in the batch; SCA's one column of −100 in front changes nothing.
    label_smoothing : float, optional
        SCA trains with 0.1.

    Returns
    -------
    () Tensor
        Each label is predicted by the position before it: the first one by the last of the prefix.
        0 where there is no label.

    Raises
    ------
    ValueError
        A sequence not longer than its text: nothing comes before the first label.

    Examples
    --------
    >>> logits = torch.zeros(1, 4, 3)
    >>> logits[0, 1, 2] = 100  # the last of two prefix positions knows the first word
    >>> float(region_text_loss(logits, torch.tensor([[2, -100]])))
    0.0
    """
    labels = region_labels
    if labels.shape[1] and bool((labels[:, 0] == IGNORE_INDEX).all()):
        labels = labels[:, 1:]
    length = labels.shape[1]
    if logits.shape[1] <= length:
        raise ValueError(
            f"{logits.shape[1]} logits for {length} labels: give those of the prefix too, whose "
            "last predicts the first label"
        )
    predictions = logits[:, -length - 1 : -1]
    if not bool((labels != IGNORE_INDEX).any()):
        return logits.sum() * 0.0
    return functional.cross_entropy(
        predictions.reshape(-1, logits.shape[-1]).float(),
        labels.reshape(-1),
        ignore_index=IGNORE_INDEX,
        label_smoothing=label_smoothing,
    )
