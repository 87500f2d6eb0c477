"""Give transformers' ``Trainer`` a pipelined loader.

Two routes. Without a subclass: ``Trainer(data_collator=SubobjectCollator(…))``, with
``remove_unused_columns=False``; batches are right, without look-ahead (and with live augmentation,
:class:`EpochCallback`). With look-ahead: the mixin.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from subtok_data.batch import model_inputs
from subtok_data.data import BatchPlan, SubobjectCollator, SubobjectDataset, SubobjectLoader
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

    ``train_sampling_strategy`` is honoured: ``"random"``, ``"sequential"``, and
    ``"group_by_length"`` as :class:`~subtok_data.BatchPlan`, with the lengths of
    ``loader_options["plan"]`` or of the dataset's column ``length_column_name``.

    Attributes
    ----------
    loader_options : dict
        Further arguments of the loader, such as ``executor`` or ``prefetch_batches``. Set it on the
        class or the instance.

    Raises
    ------
    ConfigError
        When a loader is made: without a :class:`~subtok_data.SubobjectCollator`, or if the sampling
        strategy is ``"batch_rebalance"`` or needs lengths that are not known.

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

    def _subobject_loader(
        self, dataset: Any, batch_size: int, *, shuffle: bool, **options: Any
    ) -> SubobjectLoader:
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
            **{**self.loader_options, **options},
        )

    def _train_options(self) -> dict[str, Any]:
        """Return the loader options that ``train_sampling_strategy`` asks for."""
        strategy: str = self.args.train_sampling_strategy
        if strategy in ("random", "sequential"):
            return {}
        if strategy != "group_by_length":
            raise ConfigError(
                f"train_sampling_strategy={strategy!r} is not what SubobjectLoader does: use "
                f"'random', 'sequential' or 'group_by_length', or loader_options['plan']="
                f"BatchPlan(lengths, max_batch_length=…), which bounds each rank's batch"
            )
        plan: BatchPlan | None = self.loader_options.get("plan")
        if plan is not None and plan.lengths is not None:
            return {"plan": replace(plan, by_length=True)}
        column: str = self.args.length_column_name
        dataset: Any = self.train_dataset
        if isinstance(dataset, SubobjectDataset):
            dataset = dataset.dataset
        if column not in (getattr(dataset, "column_names", None) or ()):
            raise ConfigError(
                f"train_sampling_strategy='group_by_length' needs lengths: the training dataset "
                f"has no column {column!r} (length_column_name=), and token counts are known only "
                f"after segmentation. Give loader_options={{'plan': BatchPlan(lengths)}}, with "
                f"StoredTokens(folder).lengths() for example, or use 'random'"
            )
        return {"plan": BatchPlan(np.asarray(dataset[column]), by_length=True)}

    def get_train_dataloader(self) -> SubobjectLoader:
        """Return the loader of ``train_dataset``, in the order of ``train_sampling_strategy``."""
        if self.train_dataset is None:
            raise ConfigError("training needs a train_dataset")
        # Trainer's own name for the batch size of one process.
        batch_size: int = self._train_batch_size  # pyright: ignore
        return self._subobject_loader(
            self.train_dataset,
            batch_size,
            shuffle=self.args.train_sampling_strategy != "sequential",
            **self._train_options(),
        )

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
