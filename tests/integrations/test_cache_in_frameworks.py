"""A cache under transformers' Trainer and Lightning: the second epoch has it all."""

from __future__ import annotations

import pytest
import torch
from helpers.batches import faulty_tokenizer
from helpers.faulty import CodedImages
from helpers.tiny_trainee import TinyModel

from subtok_data import SubobjectCollator, SubobjectLoader
from subtok_data.data.cache import describe_cache

OPTIONS = {"executor": "inline", "prefetch_batches": 1}
NAMES = ("pixel_values", "visual_token_areas", "visual_token_mask", "sample_index", "label")


def test_trainer_by_its_loader_options(tmp_path):
    from transformers import Trainer, TrainingArguments

    from subtok_data.integrations.trainer import SubobjectTrainerMixin

    made: list[SubobjectLoader] = []

    class Pipelined(SubobjectTrainerMixin, Trainer):
        loader_options = {**OPTIONS, "cache": tmp_path / "cache"}  # noqa: RUF012

        def get_train_dataloader(self):
            made.append(super().get_train_dataloader())
            return made[-1]

    arguments = TrainingArguments(
        str(tmp_path / "out"),
        per_device_train_batch_size=4,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        num_train_epochs=3,
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
        label_names=["label"],
    )
    collator = SubobjectCollator(faulty_tokenizer(), columns=["label"])
    Pipelined(TinyModel(), arguments, data_collator=collator, train_dataset=CodedImages(10)).train()
    (loader,) = made
    assert (loader.stats().cache_hits, loader.stats().cache_misses) == (20, 10)
    loader.close()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lightning(tmp_path):
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = TinyModel()

        def training_step(self, batch, _):
            return self.model(**{name: batch[name] for name in NAMES})["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    with SubobjectLoader(
        CodedImages(10), faulty_tokenizer(), batch_size=4, cache=tmp_path / "cache", **OPTIONS
    ) as loader:
        trainer.fit(Module(), loader)
        assert (loader.stats().cache_hits, loader.stats().cache_misses) == (20, 10)
        rebuilt = SubobjectLoader(
            **{
                name: getattr(loader, name)
                for name in ("dataset", "collate_fn", "batch_sampler", "executor", "cache")
            }
        )
        assert len(list(rebuilt)) == 3
        assert rebuilt.stats().cache_hits == 10
        rebuilt.close()
    assert describe_cache(tmp_path / "cache").records == 10
