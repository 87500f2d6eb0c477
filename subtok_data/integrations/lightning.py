"""Lightning: a data module that closes its loaders.

A :class:`~subtok_data.SubobjectLoader` needs no adapter: Lightning may use it as it is, build it
anew with its own sampler under DDP, and keep its position in checkpoints. The data module only
saves typing.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule

from subtok_data.data.loader import SubobjectLoader
from subtok_data.tokenizer import SubobjectTokenizer

__all__ = ["SubobjectDataModule"]


class SubobjectDataModule(LightningDataModule):
    """Training and validation loaders for a Lightning ``Trainer``.

    Parameters
    ----------
    train, val : dataset, optional
        What :class:`~subtok_data.SubobjectLoader` takes.
    tokenizer : SubobjectTokenizer, optional
        How images are cut.
    **options
        Further arguments of the loaders: ``batch_size``, ``num_workers``, ``collator`` …
        ``shuffle=True`` shuffles the training loader only.

    Notes
    -----
    Needs ``pip install 'subtok-data[lightning]'``.
    """

    def __init__(
        self,
        train: Any = None,
        val: Any = None,
        *,
        tokenizer: SubobjectTokenizer | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.tokenizer = tokenizer
        self.options = options
        self._loaders: list[SubobjectLoader] = []

    def _loader(self, dataset: Any, **options: Any) -> SubobjectLoader:
        loader = SubobjectLoader(dataset, self.tokenizer, **{**self.options, **options})
        self._loaders.append(loader)
        return loader

    def train_dataloader(self) -> SubobjectLoader:
        """Return the training loader."""
        return self._loader(self.train)

    def val_dataloader(self) -> SubobjectLoader | list[Any]:
        """Return the validation loader, in order; nothing without a validation set."""
        return [] if self.val is None else self._loader(self.val, shuffle=False)

    def teardown(self, stage: str) -> None:
        """End the workers of all loaders."""
        del stage
        while self._loaders:
            self._loaders.pop().close()
