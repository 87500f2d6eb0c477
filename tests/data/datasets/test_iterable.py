"""Streams are shared out over ranks and workers once, or refused; they resume where they stood."""

from __future__ import annotations

import datasets
import pytest
from helpers.batches import faulty_tokenizer
from helpers.faulty import Rows, coded_image
from helpers.streams import SelfSharding, StatefulStream, WholeStream
from torch.utils.data import DataLoader

from subtok_data import SubobjectIterableDataset, SubobjectLoader
from subtok_data.data.position import LoaderState
from subtok_data.errors import ConfigError

UNKNOWN = "WholeStream is a torch IterableDataset.*shards_itself=True.*shards_itself=False"


def labels_of(source, **options) -> list[int]:
    with SubobjectLoader(
        source, faulty_tokenizer(), batch_size=3, executor="thread", segment_workers=1, **options
    ) as loader:
        return [label for batch in loader for label in batch["label"].tolist()]


def of_ranks(make, world: int) -> list[list[int]]:
    found = []
    for rank in range(world):
        stream = make()
        stream.prepare(3, (rank, world), LoaderState())
        found.append([sample.columns["label"] for sample in stream])
    return found


def _rows() -> list[dict]:
    return [{"image": coded_image(i), "label": i} for i in range(13)]


def test_a_torch_stream_of_unknown_sharding_is_refused_where_it_would_be_duplicated():
    with pytest.raises(ConfigError, match=f"(?s){UNKNOWN}"):
        labels_of(WholeStream(), num_workers=2)
    with pytest.raises(ConfigError, match="2 rank"):
        of_ranks(lambda: SubobjectIterableDataset(WholeStream()), 2)
    stream = SubobjectIterableDataset(WholeStream())
    with pytest.raises(ConfigError, match=f"(?s){UNKNOWN}"):
        list(DataLoader(stream, batch_size=None, num_workers=2))


def test_a_torch_stream_needs_no_word_in_one_process():
    assert labels_of(WholeStream()) == list(range(13))
    assert sorted(labels_of(WholeStream(), num_workers=1)) == list(range(13))


@pytest.mark.parametrize(("kind", "shards_itself"), [(WholeStream, False), (SelfSharding, True)])
def test_two_workers_see_a_torch_stream_once(kind, shards_itself):
    stream = SubobjectIterableDataset(kind(), shards_itself=shards_itself)
    assert sorted(labels_of(stream, num_workers=2)) == list(range(13))


def test_three_ranks_see_a_torch_stream_once():
    ranks = of_ranks(lambda: SubobjectIterableDataset(WholeStream(), shards_itself=False), 3)
    assert ranks == [list(range(rank, 13, 3)) for rank in range(3)]
    plain = of_ranks(lambda: SubobjectIterableDataset(_rows()), 3)
    assert plain == ranks


def test_a_hugging_face_stream_is_not_shared_out_twice():
    stream = datasets.IterableDataset.from_generator(Rows().__iter__)
    with pytest.raises(ConfigError, match="Leave shards_itself out"):
        SubobjectIterableDataset(stream, shards_itself=False)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("taken", [1, 2, 3, 4])
def test_a_stream_with_a_state_resumes_behind_its_own_rows(world, taken):
    rank = world - 1

    def make(state: LoaderState) -> SubobjectIterableDataset:
        stream = SubobjectIterableDataset(StatefulStream(), shards_itself=False)
        stream.prepare(1, (rank, world), state)
        return stream

    expected = [(s.columns["label"], s.index) for s in make(LoaderState())]
    assert expected == [(i, i) for i in range(rank, 13, world)]
    samples = iter(make(LoaderState()))
    state = LoaderState()
    for _ in range(taken):
        state.advance(next(samples).position)
    rest = [(s.columns["label"], s.index) for s in make(state)]
    assert rest == expected[taken:]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_iterator_is_read_once_and_then_refused(workers):
    rows = ({"image": coded_image(i)} for i in range(4))
    with SubobjectLoader(
        rows, faulty_tokenizer(), batch_size=2, executor="inline", num_workers=workers
    ) as loader:
        assert sum(len(batch["sample_index"]) for batch in loader) == 4
        with pytest.raises(ConfigError, match=r"generator, an iterator, .* read once, and was"):
            list(loader)
