"""Columns that pass through: collated as torch does, lists where torch cannot stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import default_collate

from subtok_data.batch.keys import RESERVED_KEYS
from subtok_data.errors import ConfigError

__all__ = ["collate_columns", "put_column_row"]


def collate_columns(rows: Sequence[dict[str, Any]], keep: Sequence[str] | None) -> dict[str, Any]:
    """Collate the columns of several rows.

    Numbers, tensors and arrays are stacked as ``torch.utils.data.default_collate`` does; strings,
    and what cannot be stacked (None, lists, ragged arrays), stay a list with one entry a row.

    Parameters
    ----------
    rows : sequence of dict
        Columns of each row.
    keep : sequence of str or None
        Columns to keep; None keeps all.

    Raises
    ------
    ConfigError
        If rows differ in their columns, a column is missing, or a name belongs to the batch
        contract.
    """
    names = list(rows[0]) if keep is None else list(keep)
    collated: dict[str, Any] = {}
    for name in names:
        if name in RESERVED_KEYS:
            raise ConfigError(
                f"column {name!r} has the name of a key of the batch: rename it, or leave it out "
                "with columns=[…]"
            )
        lacking = [place for place, row in enumerate(rows) if name not in row]
        if lacking:
            raise ConfigError(
                f"column {name!r} is missing in row {lacking[0]} of the batch, which has "
                f"{sorted(rows[lacking[0]])}"
            )
        collated[name] = _stack([row[name] for row in rows])
    return collated


def _stack(values: list[Any]) -> Any:
    # Lists are left alone: default_collate would transpose them.
    if any(value is None or isinstance(value, (str, bytes, list, tuple)) for value in values):
        return values
    try:
        return default_collate(values)
    except (TypeError, RuntimeError, KeyError, ValueError):
        return values


def put_column_row(columns: dict[str, Any], row: int, replacement: dict[str, Any]) -> None:
    """Overwrite one row of collated columns with the only row of others."""
    for name, values in columns.items():
        new = replacement[name]
        if isinstance(values, torch.Tensor) and isinstance(new, torch.Tensor):
            if values.shape[1:] == new.shape[1:]:
                values[row] = new[0].to(values.dtype)
                continue
            values = list(values)
        elif isinstance(values, dict) and isinstance(new, dict):
            put_column_row(values, row, new)
            continue
        as_list = list(values)
        as_list[row] = new[0]
        columns[name] = as_list
