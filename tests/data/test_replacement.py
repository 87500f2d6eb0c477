"""Bad samples are replaced from their own dataset, wherever their batch is finished."""

from __future__ import annotations

import copy
import pickle

import pytest
from helpers.batches import assert_same_batches, faulty_tokenizer
from helpers.faulty import RAISE, CodedImages
from torch.utils.data import ConcatDataset, DataLoader

from subtok_data import SubobjectCollator, SubobjectDataset, SubobjectLoader

pytestmark = pytest.mark.usefixtures("no_leaks")

LENGTH = 40
BAD = 5
OPTIONS = {"batch_size": 4, "executor": "thread", "segment_workers": 1}


class Labelled(CodedImages):
    """Coded images of one dataset: their labels begin at ``first``; one cannot be segmented."""

    def __init__(self, first: int, length: int = LENGTH) -> None:
        super().__init__(length, {BAD: RAISE})
        self.first = first

    def __getitem__(self, index: int):
        row = super().__getitem__(index)
        return {"image": row["image"], "label": self.first + index}


def labels(batches) -> list[int]:
    return [label for batch in batches for label in batch["label"].tolist()]


def collator_of() -> SubobjectCollator:
    return SubobjectCollator(faulty_tokenizer(), on_error="replace")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_collator_in_two_loaders_replaces_from_the_dataset_of_each(num_workers):
    collator = collator_of()
    train = SubobjectDataset(Labelled(0), on_error="replace")
    evaluation = SubobjectDataset(Labelled(1000), on_error="replace")
    with (
        SubobjectLoader(train, collator=collator, num_workers=num_workers, **OPTIONS) as one,
        SubobjectLoader(evaluation, collator=collator, **OPTIONS) as other,
    ):
        found, evaluated = labels(one), labels(other)
        (own,), (others,) = one.stats().replaced, other.stats().replaced
    assert max(found) < 1000 <= min(evaluated)
    # Of the whole dataset, not of the batch: chosen by seed and index, alike in both.
    assert found[BAD] == evaluated[BAD] - 1000 == own.used == others.used
    assert (own.index, others.index) == (BAD, BAD)
    assert collator.replaced == [own, others]


def test_plain_dataloader_with_workers_replaces_alike():
    collator = collator_of()
    dataset = SubobjectDataset(Labelled(0), on_error="replace")
    with SubobjectLoader(dataset, collator=collator, **OPTIONS) as loader:
        expected = list(loader)
    other = SubobjectDataset(Labelled(1000), on_error="replace")
    SubobjectLoader(other, collator=collator, **OPTIONS).close()
    workers = {"num_workers": 1, "multiprocessing_context": "forkserver"}
    pending = list(DataLoader(dataset, 4, collate_fn=collator, **workers))
    assert not any(batch.is_finished for batch in pending)
    assert_same_batches([batch.to("cpu") for batch in pending], expected)


def test_datasets_joined_in_one_dataloader_replace_each_their_own():
    parts = [SubobjectDataset(Labelled(first, 8)) for first in (0, 1000)]
    found = labels(DataLoader(ConcatDataset(parts), 16, collate_fn=collator_of()))
    assert max(found[:8]) < 1000 <= min(found[8:])
    assert BAD not in found
    assert 1000 + BAD not in found


def test_dataset_that_is_gone_leaves_a_good_sample_of_the_batch():
    collator = collator_of()
    dataset = SubobjectDataset(Labelled(0))
    with collator.deferred():
        pending = collator([dataset[i] for i in range(BAD - 1, BAD + 3)])
    del dataset
    assert pending["label"].tolist() == [BAD - 1, BAD + 1, BAD + 1, BAD + 2]
    (replaced,) = collator.replaced
    assert (replaced.index, replaced.used) == (BAD, BAD + 1)


def test_copy_of_a_dataset_is_a_dataset_of_its_own():
    original = SubobjectDataset(Labelled(0))
    for changed in (copy.copy(original), copy.deepcopy(original)):
        changed.dataset = Labelled(1000)
        found = collator_of()([changed[i] for i in range(8)])["label"].tolist()
        assert min(found) >= 1000
        assert 1000 + BAD not in found
    state = pickle.dumps(original)
    key = original[0].dataset_key
    del original, changed
    assert pickle.loads(state)[0].dataset_key == key  # as in a worker, where there is no other
