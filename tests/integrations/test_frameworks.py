"""Real frameworks around the loader: accelerate, Trainer, Lightning, one and two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.batches import assert_same, assert_same_batches, faulty_tokenizer
from helpers.faulty import CodedImages, coded_image, png
from helpers.tiny_trainee import TinyModel
from torchvision.transforms import v2

from subtok_data import BatchPlan, SubobjectCollator, SubobjectDataset, SubobjectLoader
from subtok_data.errors import ConfigError

OPTIONS = {"executor": "thread", "segment_workers": 1, "prefetch_batches": 3}


def make(length: int = 18, **options) -> SubobjectLoader:
    return SubobjectLoader(
        CodedImages(length), faulty_tokenizer(), **{"batch_size": 4, **OPTIONS, **options}
    )


# --- accelerate -----------------------------------------------------------------------------------


@pytest.fixture
def accelerator():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    yield Accelerator(cpu=True, gradient_accumulation_steps=4)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_prepare_keeps_the_loader_and_the_end_of_the_epoch(accelerator):
    with make() as loader:
        assert accelerator.prepare(loader) is loader
        model, optimizer = accelerator.prepare(
            torch.nn.Linear(1, 1), torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
        )
        for _ in range(2):
            syncs, ends, remainders = [], [], []
            for _batch in loader:
                with accelerator.accumulate(model):
                    syncs.append(accelerator.sync_gradients)
                ends.append(accelerator.gradient_state.end_of_dataloader)
                remainders.append(accelerator.gradient_state.remainder)
            # Five batches, four to a step: the last one synchronises although it is alone.
            assert syncs == [False, False, False, True, True]
            assert ends == [False, False, False, False, True]
            assert remainders == [2] * 5
            assert accelerator.gradient_state.active_dataloader is None
        assert optimizer is not None


def test_skip_first_batches(accelerator):
    from accelerate import skip_first_batches

    with make(shuffle=True) as loader:
        expected = list(loader)
        loader.set_epoch(0)
        rest = [batch.to("cpu") for batch in _pending(skip_first_batches(loader, 2))]
        assert_same_batches(rest, expected[2:])


def _pending(batches):
    """Batches of a rebuilt loader, which may be finished already in the main process."""
    from subtok_data.data import PendingBatch

    return [b if isinstance(b, PendingBatch) else PendingBatch(b) for b in batches]


def test_foreign_rebuild_gives_the_same_batches(accelerator):
    from accelerate.data_loader import prepare_data_loader

    with make() as loader:
        expected = list(loader)
        rebuilt = prepare_data_loader(
            loader, num_processes=1, process_index=0, put_on_device=True, device=torch.device("cpu")
        )
        assert type(rebuilt) is not SubobjectLoader
        for batch, own in zip(rebuilt, expected, strict=True):
            assert_same(batch, own)


def test_save_state_and_load_state(accelerator, tmp_path):
    with make(shuffle=True) as loader:
        accelerator.prepare(loader)
        expected = list(loader)
        loader.set_epoch(0)
        iterator = iter(loader)
        next(iterator), next(iterator)
        accelerator.save_state(tmp_path)
        next(iterator)
        accelerator.load_state(tmp_path)
        assert_same_batches(list(loader), expected[2:])


# --- transformers' Trainer ------------------------------------------------------------------------


def trainer_of(tmp_path, route: str, **options):
    from transformers import Trainer, TrainingArguments

    from subtok_data.integrations.trainer import EpochCallback, SubobjectTrainerMixin

    class PipelinedTrainer(SubobjectTrainerMixin, Trainer):
        loader_options = OPTIONS

    class CountingModel(TinyModel):
        def forward(
            self, pixel_values, visual_token_areas, visual_token_mask, sample_index, label, **_
        ):
            return super().forward(
                pixel_values, visual_token_areas, visual_token_mask, sample_index, label
            )

    torch.manual_seed(0)
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        learning_rate=0.05,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        save_steps=8,
        save_only_model=False,
        seed=3,
        label_names=["label"],
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
        **{"num_train_epochs": 2, **options},
    )
    collator = SubobjectCollator(faulty_tokenizer(), columns=["label"])
    kind = PipelinedTrainer if route == "mixin" else Trainer
    return kind(
        CountingModel(),
        arguments,
        data_collator=collator,
        # Augmented: a resumed epoch must draw the same crops too.
        train_dataset=SubobjectDataset(CodedImages(18), transform=v2.RandomCrop(40)),
        eval_dataset=SubobjectDataset(CodedImages(7)),
        callbacks=[EpochCallback()] if route == "collator" else None,
    )


@pytest.mark.parametrize("route", ["collator", "mixin"])
def test_trainer_trains_and_resumes_in_the_middle_of_an_epoch(tmp_path, route):
    whole = trainer_of(tmp_path / "whole", route)
    whole.train()
    seen = list(whole.model.seen)
    assert len(seen) == 10
    assert sorted(i for batch in seen[:5] for i in batch) == list(range(18))
    assert seen[:5] != seen[5:]
    metrics = whole.evaluate()
    assert metrics["eval_loss"] >= 0
    # Step 8 is in the middle of the second epoch.
    resumed = trainer_of(tmp_path / "resumed", route)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    assert resumed.model.seen == seen[8:]
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_trainer_that_removes_columns_is_told_what_to_do(tmp_path):
    from datasets import Dataset

    trainer = trainer_of(tmp_path, "collator", max_steps=1)
    trainer.args.remove_unused_columns = True
    trainer.train_dataset = Dataset.from_dict({"picture": ["a.png"], "label": [1]})
    with pytest.raises(ConfigError, match="remove_unused_columns=False"):
        trainer.train()


def test_mixin_refuses_another_collator(tmp_path):
    trainer = trainer_of(tmp_path, "mixin")
    trainer.data_collator = list
    with pytest.raises(ConfigError, match="give a SubobjectCollator"):
        trainer.train()


def lengths_of_batches(trainer, lengths) -> list[list[int]]:
    with trainer.get_train_dataloader() as loader:
        return [[lengths[i] for i in batch["sample_index"].tolist()] for batch in loader]


@pytest.mark.parametrize("source", ["plan", "column"])
def test_mixin_groups_by_length(tmp_path, source):
    from datasets import Dataset, Image

    lengths = [7 * i % 18 for i in range(18)]
    trainer = trainer_of(tmp_path, "mixin", train_sampling_strategy="group_by_length")
    if source == "plan":
        trainer.loader_options = {**OPTIONS, "plan": BatchPlan(lengths)}
    else:
        columns = {
            "image": [{"bytes": png(coded_image(i)), "path": None} for i in range(18)],
            "label": list(range(18)),
            "length": lengths,
        }
        trainer.train_dataset = Dataset.from_dict(columns).cast_column("image", Image())
    batches = lengths_of_batches(trainer, lengths)
    assert sorted(length for batch in batches for length in batch) == list(range(18))
    assert all(max(batch) - min(batch) < 4 for batch in batches)  # neighbours by length
    assert [max(batch) for batch in batches] != sorted(map(max, batches), reverse=True)


def test_mixin_takes_samples_in_sequence(tmp_path):
    trainer = trainer_of(tmp_path, "mixin", train_sampling_strategy="sequential")
    batches = lengths_of_batches(trainer, range(18))
    assert [index for batch in batches for index in batch] == list(range(18))


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ("group_by_length", "no column 'length'.*StoredTokens"),
        ("batch_rebalance", "'batch_rebalance' is not what"),
    ],
)
def test_mixin_refuses_an_order_that_it_cannot_give(tmp_path, strategy, words):
    trainer = trainer_of(tmp_path, "mixin", train_sampling_strategy=strategy)
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        trainer.train()


# --- Lightning ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("route", ["loader", "data module"])
def test_lightning_fits_and_resumes_from_a_checkpoint(tmp_path, route):
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = TinyModel()

        def training_step(self, batch, _):
            names = ("pixel_values", "visual_token_areas", "visual_token_mask", "sample_index")
            return self.model(**{k: batch[k] for k in names}, label=batch["label"])["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    def fit(max_steps: int, checkpoint=None):
        module = Module()
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=max_steps,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
        )
        if route == "data module":
            trainer.fit(module, data_module(train=CodedImages(18)), ckpt_path=checkpoint)
        else:
            with make(shuffle=True) as loader:
                trainer.fit(module, loader, ckpt_path=checkpoint)
        return trainer, module.model.seen

    _, whole = fit(9)
    trainer, first = fit(3)
    trainer.save_checkpoint(tmp_path / "middle.ckpt")
    _, rest = fit(9, tmp_path / "middle.ckpt")
    assert len(whole) == 9
    assert first == whole[:3]
    assert rest == whole[3:]


def data_module(**datasets) -> Any:
    from subtok_data.integrations import SubobjectDataModule

    collator = SubobjectCollator(faulty_tokenizer())
    return SubobjectDataModule(collator, batch_size=4, **OPTIONS, **datasets)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_data_module_has_a_loader_for_each_stage(tmp_path):
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.seen = {"training": [], "validation": [], "test": [], "predict": []}

        def step(self, stage, batch):
            self.seen[stage] += batch["sample_index"].tolist()
            return self.layer(torch.ones(1)).sum()

        def training_step(self, batch, _):
            return self.step("training", batch)

        def validation_step(self, batch, _):
            self.step("validation", batch)

        def test_step(self, batch):
            self.step("test", batch)

        def predict_step(self, batch, _):
            self.step("predict", batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    module = Module()
    sizes = {"train": 9, "val": 7, "test": 6, "predict": 5}
    data = data_module(**{name: CodedImages(size) for name, size in sizes.items()})
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    trainer.predict(module, data)
    trained = module.seen.pop("training")
    assert sorted(trained[:9]) == list(range(9)) != trained[:9]
    assert module.seen == {
        "validation": list(range(7)),
        "test": list(range(6)),
        "predict": list(range(5)),
    }
    assert data._open == []
    without = Module()
    trainer.fit_loop.epoch_progress.reset()
    trainer.fit(without, data_module(train=CodedImages(9)))
    assert without.seen["validation"] == []
    with pytest.raises(ConfigError, match=r"SubobjectDataModule\(…, test=…\)"):
        data_module(train=CodedImages(9)).test_dataloader()


# --- two processes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    here = Path(__file__).parents[1]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *(str(here / "helpers" / "frameworks_on_two_ranks.py"), str(folder)),
        ],
        env={**os.environ, "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_two_ranks_have_equally_many_batches_of_different_samples(ranks):
    assert all(rank["kept"] for rank in ranks)
    assert [rank["length"] for rank in ranks] == [3, 3]
    own = [[i for batch in rank["own"] for i in batch] for rank in ranks]
    assert [len(indices) for indices in own] == [12, 12]
    assert set(own[0]) | set(own[1]) == set(range(18))
    assert len(set(own[0]) & set(own[1])) <= 6  # only what fills the last batches


def test_two_ranks_gather_every_sample_once(ranks):
    assert ranks[0]["gathered"] == ranks[1]["gathered"]
    assert sorted(ranks[0]["gathered"]) == list(range(18))


def test_two_ranks_synchronise_at_the_end_of_the_epoch(ranks):
    assert ranks[0]["syncs"] == ranks[1]["syncs"] == [False, True, True]
    assert ranks[0]["weights"] == ranks[1]["weights"]


@pytest.mark.parametrize("plan", ["by_length", "budget"])
def test_two_ranks_share_one_plan(ranks, plan):
    batches = [rank[plan] for rank in ranks]
    assert len(batches[0]) == len(batches[1])
    found = [i for rank in batches for batch in rank for i in batch]
    assert set(found) == set(range(18))
    if plan == "budget":
        lengths = [10 + 7 * (i % 5) for i in range(18)]
        for rank in batches:
            assert all(len(b) * max(lengths[i] for i in b) <= 80 for b in rank)


@pytest.mark.parametrize(("source", "count"), [("hugging_face", 28), ("plain", 21)])
def test_two_ranks_by_two_workers_see_a_stream_once(ranks, source, count):
    assert sorted(ranks[0][source] + ranks[1][source]) == list(range(count))
    assert ranks[0][source]
    assert ranks[1][source]


def test_lightning_builds_the_loader_anew_under_ddp(ranks):
    pytest.importorskip("lightning")
    assert ranks[0]["rebuilt"] == ["SubobjectLoader", "DistributedSampler"]
    epochs = [[rank["lightning"][:3], rank["lightning"][3:]] for rank in ranks]
    for epoch in (0, 1):
        found = {i for rank in epochs for batch in rank[epoch] for i in batch}
        assert found == set(range(17))
    assert epochs[0][0] != epochs[0][1]  # shuffled anew
    assert epochs[0][0][0] != [0, 2, 4, 6]
