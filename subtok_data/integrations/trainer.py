"""Give transformers' ``Trainer`` a pipelined loader.

Two routes. Without a subclass: ``Trainer(data_collator=SubobjectCollator(…))``, with
``remove_unused_columns=False``; batches are right, without look-ahead (and with live augmentation,
:class:`EpochCallback`). With look-ahead: the mixin.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from subtok_data.batch import model_inputs
from subtok_data.data import SubobjectCollator, SubobjectLoader
from subtok_data.errors import ConfigError

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object

__all__ = ["EpochCallback", "SubobjectTrainerMixin"]


class EpochCallback(TrainerCallback):
    """Tell the training dataset its epoch, which keys live augmentation.

    Needed with ``data_collator=`` alone: a Trainer that resumes in the middle of an epoch tells the
    epoch to the sampler, but not to the dataset.

    Examples
    --------
    >>> callbacks = [EpochCallback()]  # Trainer(callbacks=callbacks, …)
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See ``transformers.TrainerCallback``."""
        del args, control
        dataset: Any = getattr(kwargs.get("train_dataloader"), "dataset", None)
        if hasattr(dataset, "set_epoch"):
            # state.epoch is a fraction, one rounding error away from the whole number.
            dataset.set_epoch(math.floor(state.epoch + 1e-6))


class SubobjectTrainerMixin(Trainer):
    """Give a Trainer its loaders: :class:`~subtok_data.SubobjectLoader`, with look-ahead.

    ``data_collator`` must be a :class:`~subtok_data.SubobjectCollator`. Batch size, workers, seed
    and ``dataloader_drop_last`` come from ``TrainingArguments``. Only what ``model.forward`` names
    is handed to the model.

    Attributes
    ----------
    loader_options : dict
        Further arguments of the loader, such as ``executor`` or ``prefetch_batches``. Set it on the
        class or the instance.

    Notes
    -----
    A resumed Trainer builds the loader of the interrupted epoch anew, as a plain DataLoader: the
    rest of that epoch has the same batches, without look-ahead. ``prefetch_batches + 2`` +
    ``gradient_accumulation_steps`` batches are held at most.

    Examples
    --------
    >>> from transformers import Trainer
    >>> class SubobjectTrainer(SubobjectTrainerMixin, Trainer):
    ...     loader_options = {"prefetch_batches": 4}
    """

    loader_options: dict[str, Any] = {}  # noqa: RUF012

    def _subobject_loader(self, dataset: Any, batch_size: int, *, shuffle: bool) -> SubobjectLoader:
        collator: Any = self.data_collator
        if not isinstance(collator, SubobjectCollator):
            raise ConfigError(
                f"data_collator is a {type(collator).__name__}: give a SubobjectCollator"
            )
        args = self.args
        streaming = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")
        return SubobjectLoader(
            dataset,
            collator=collator,
            batch_size=batch_size,
            shuffle=shuffle and not streaming,
            drop_last=args.dataloader_drop_last,
            num_workers=args.dataloader_num_workers,
            seed=args.seed if args.data_seed is None else args.data_seed,
            **self.loader_options,
        )

    def get_train_dataloader(self) -> SubobjectLoader:
        """Return the loader of ``train_dataset``, shuffled."""
        if self.train_dataset is None:
            raise ConfigError("training needs a train_dataset")
        # Trainer's own name for the batch size of one process.
        batch_size: int = self._train_batch_size  # pyright: ignore
        return self._subobject_loader(self.train_dataset, batch_size, shuffle=True)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> SubobjectLoader:
        """Return the loader of ``eval_dataset``, in order."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]  # pyright: ignore
        if dataset is None:
            raise ConfigError("evaluation needs an eval_dataset")
        return self._subobject_loader(dataset, self.args.eval_batch_size, shuffle=False)

    def get_test_dataloader(self, test_dataset: Any) -> SubobjectLoader:
        """Return the loader of ``test_dataset``, in order."""
        return self._subobject_loader(test_dataset, self.args.eval_batch_size, shuffle=False)

    def _prepare_inputs(self, inputs: Any) -> Any:
        prepared: Any = super()._prepare_inputs(inputs)
        return model_inputs(prepared, self.model)  # pyright: ignore[reportArgumentType]
