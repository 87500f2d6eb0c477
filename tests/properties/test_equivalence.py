"""The same bits from every executor, worker count, start method and look-ahead."""

from __future__ import annotations

import pytest
import torch
from helpers.batches import assert_same, assert_same_batches, faulty_tokenizer
from helpers.faulty import CodedImages
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from subtok_data import (
    SubobjectCollator,
    SubobjectDataset,
    SubobjectLoader,
    SubobjectTokenizer,
    validate_batch,
)

pytestmark = pytest.mark.usefixtures("no_leaks")

LENGTH, BATCH = 23, 4


def augmented() -> SubobjectDataset:
    transform = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(64)])
    return SubobjectDataset(CodedImages(LENGTH), transform=transform, seed=5)


@pytest.fixture(scope="module")
def reference() -> list:
    loader = SubobjectLoader(
        augmented(),
        faulty_tokenizer(),
        batch_size=BATCH,
        shuffle=True,
        executor="inline",
        prefetch_batches=0,
    )
    with loader:
        batches = list(loader)
    for batch in batches:
        validate_batch(batch)
    return batches


@pytest.mark.parametrize("prefetch_batches", [0, 1, 4])
@pytest.mark.parametrize("executor", ["inline", "thread", "process"])
def test_executors_and_look_ahead(reference, executor, prefetch_batches):
    tokenizer = faulty_tokenizer(sleep_s=0.01)
    with SubobjectLoader(
        augmented(),
        tokenizer,
        batch_size=BATCH,
        shuffle=True,
        executor=executor,
        segment_workers=3,
        prefetch_batches=prefetch_batches,
    ) as loader:
        assert_same_batches(list(loader), reference)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # from Python 3.12 on
@pytest.mark.parametrize(
    ("num_workers", "method"),
    [
        (2, "forkserver"),
        (2, "fork"),
        pytest.param(2, "spawn", marks=pytest.mark.slow),
        pytest.param(3, "forkserver", marks=pytest.mark.slow),
    ],
)
def test_dataloader_workers_and_start_methods(reference, num_workers, method):
    with SubobjectLoader(
        augmented(),
        faulty_tokenizer(sleep_s=0.01),
        batch_size=BATCH,
        shuffle=True,
        num_workers=num_workers,
        multiprocessing_context=method,
        segment_workers=2,
    ) as loader:
        assert_same_batches(list(loader), reference)


def test_collator_in_plain_dataloader_gives_the_same_batches(reference):
    dataset = augmented()
    collator = SubobjectCollator(faulty_tokenizer())
    order = [batch["sample_index"].tolist() for batch in reference]
    in_process = DataLoader(dataset, batch_sampler=order, collate_fn=collator)
    assert_same_batches(list(in_process), reference)
    in_workers = DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=collator,
        num_workers=2,
        multiprocessing_context="forkserver",
    )
    pending = list(in_workers)
    assert not any(batch.is_finished for batch in pending)
    for batch, expected in zip(pending, reference, strict=True):
        moved = batch.to("cpu")
        assert type(moved) is dict
        assert_same(moved, expected)
        assert_same(dict(batch), expected)


def test_epochs_differ_in_order_and_augmentation_and_repeat_exactly():
    def run() -> list[list]:
        with SubobjectLoader(
            augmented(), faulty_tokenizer(), batch_size=BATCH, shuffle=True, executor="thread"
        ) as loader:
            return [list(loader) for _ in range(2)]

    first, again = run(), run()
    for one, other in zip(first, again, strict=True):
        assert_same_batches(one, other)
    orders = [[b["sample_index"].tolist() for b in epoch] for epoch in first]
    assert orders[0] != orders[1]


def test_epoch_reaches_persistent_workers():
    dataset = SubobjectDataset(CodedImages(8), transform=v2.RandomCrop(48), seed=1)
    options = {"batch_size": 4, "executor": "thread", "segment_workers": 1}
    with SubobjectLoader(dataset, faulty_tokenizer(), num_workers=2, **options) as loader:
        living = [list(loader) for _ in range(2)]
    assert not torch.equal(living[0][0]["pixel_values"], living[1][0]["pixel_values"])
    with SubobjectLoader(dataset, faulty_tokenizer(), **options) as loader:
        loader.set_epoch(1)
        assert_same_batches(list(loader), living[1])


@pytest.mark.parametrize("control", ["num_tokens", "strength"])
def test_boundary_model_gives_the_same_tokens_from_every_executor(control):
    tokenizer = SubobjectTokenizer(
        size=96, device="cpu", **{control: {"num_tokens": 9, "strength": 0.2}[control]}
    )
    batches = {}
    for executor in ("inline", "thread", "process"):
        with SubobjectLoader(
            CodedImages(6), tokenizer, batch_size=3, executor=executor, segment_workers=2
        ) as loader:
            batches[executor] = list(loader)
            for batch in batches[executor]:
                validate_batch(batch)
                if control == "num_tokens":
                    assert batch["num_visual_tokens"].tolist() == [9, 9, 9]
    assert_same_batches(batches["inline"], batches["thread"])
    assert_same_batches(batches["inline"], batches["process"])
