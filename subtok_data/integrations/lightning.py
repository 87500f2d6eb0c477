"""``SubobjectDataModule``: the loaders of a Lightning run, from its datasets."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import LightningDataModule
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "SubobjectDataModule needs the package lightning: pip install 'subtok-data[lightning]'",
        name=error.name,
    ) from error

from subtok_data.data import SubobjectCollator, SubobjectLoader
from subtok_data.errors import ConfigError

__all__ = ["SubobjectDataModule"]


class SubobjectDataModule(LightningDataModule):
    """Give Lightning a :class:`~subtok_data.SubobjectLoader` for each dataset of a run.

    Checkpoints hold the position of the training loader, and a resumed run goes on behind the last
    batch. Loaders are closed when their stage ends.

    Parameters
    ----------
    collator : SubobjectCollator
        Of all loaders.
    train, val, test, predict : dataset, optional
        What a loader takes; training is shuffled, the others keep their order.
    batch_size : int, optional
        Of all loaders.
    **options
        Further arguments of the loaders, such as ``num_workers``, ``executor`` or ``plan``.

    Examples
    --------
    >>> import numpy as np
    >>> from subtok_data import PatchSegmenter, SubobjectCollator, SubobjectTokenizer
    >>> from subtok_data.integrations import SubobjectDataModule
    >>> rows = [{"image": np.zeros((64, 64, 3), np.uint8)}] * 4
    >>> collator = SubobjectCollator(SubobjectTokenizer(PatchSegmenter(32), size=64))
    >>> data = SubobjectDataModule(collator, train=rows, batch_size=2, executor="inline")
    >>> len(data.train_dataloader())
    2
    >>> data.teardown("fit")
    """

    def __init__(
        self,
        collator: SubobjectCollator,
        *,
        train: Any = None,
        val: Any = None,
        test: Any = None,
        predict: Any = None,
        batch_size: int = 8,
        **options: Any,
    ) -> None:
        super().__init__()
        self.collator = collator
        self.datasets = {"train": train, "val": val, "test": test, "predict": predict}
        self.batch_size = batch_size
        self.options = options
        self._open: list[SubobjectLoader] = []

    def _loader(self, name: str) -> SubobjectLoader:
        dataset = self.datasets[name]
        if dataset is None:
            raise ConfigError(f"no dataset for this stage: give SubobjectDataModule(…, {name}=…)")
        ordered = {} if name == "train" else {"shuffle": False, "plan": None, "drop_last": False}
        streamed = not hasattr(dataset, "__getitem__")
        options: dict[str, Any] = {"shuffle": not streamed, **self.options, **ordered}
        loader = SubobjectLoader(
            dataset, collator=self.collator, batch_size=self.batch_size, **options
        )
        self._open.append(loader)
        return loader

    def train_dataloader(self) -> SubobjectLoader:
        """Return the loader of ``train``, shuffled."""
        return self._loader("train")

    def val_dataloader(self) -> SubobjectLoader | list[Any]:
        """Return the loader of ``val``; none without one: validation is left out."""
        return [] if self.datasets["val"] is None else self._loader("val")

    def test_dataloader(self) -> SubobjectLoader:
        """Return the loader of ``test``."""
        return self._loader("test")

    def predict_dataloader(self) -> SubobjectLoader:
        """Return the loader of ``predict``."""
        return self._loader("predict")

    def teardown(self, stage: str) -> None:
        """Close the loaders; see ``lightning.pytorch.LightningDataModule``."""
        del stage
        while self._open:
            self._open.pop().close()
