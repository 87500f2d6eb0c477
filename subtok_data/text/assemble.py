"""Join the text and the visual keys of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from subtok_data.text.encoder import TextEncoder
from subtok_data.text.packing import pack_batch, refuse_dispatcher
from subtok_data.text.rows import EncodedText, pad_rows

__all__ = ["layout_text"]


def layout_text(
    encoder: TextEncoder,
    texts: Sequence[EncodedText],
    counts: Sequence[Sequence[int]],
    visual: Mapping[str, Any],
    *,
    packing: bool = False,
    pad_to_multiple_of: int = 1,
) -> dict[str, Any]:
    """Lay out a batch with text first, padded or packed.

    Parameters
    ----------
    encoder : TextEncoder
        It knows the padding token and side.
    texts : sequence of EncodedText
        Of B samples.
    counts : sequence of sequence of int
        Visual tokens of each image of each sample.
    visual : mapping
        The visual keys of the padded batch.
    packing : bool
        Give the packed layout.
    pad_to_multiple_of : int
        The length of padded rows is rounded up to this.

    Returns
    -------
    dict
        Text keys, then visual keys.

    Raises
    ------
    ValueError
        When the visual tokens of a sample do not fit; see :meth:`EncodedText.check_fits`.
    ConfigError
        When packed batches would go through accelerate's dispatcher.
    """
    if packing:
        refuse_dispatcher()
    rows = [text.expand(own) for text, own in zip(texts, counts, strict=True)]
    padded = pad_rows(
        rows,
        encoder.pad_id,
        padding_side=encoder.config.padding_side,
        pad_to_multiple_of=1 if packing else pad_to_multiple_of,
    )
    batch: dict[str, Any] = {**padded, **visual}
    return pack_batch(batch) if packing else batch
