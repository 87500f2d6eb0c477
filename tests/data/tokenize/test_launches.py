"""An asynchronous model has the next batch before the host waits for this one."""

from __future__ import annotations

import pytest
from helpers.faulty import CodedImages, FaultyPartitioner, FaultySegmenter

from subtok_data import SubobjectTokenizer
from subtok_data.data import StoredTokens, tokenize_dataset
from subtok_data.errors import SubtokError


class Launching(FaultySegmenter):
    """Notes what is launched and waited for; a batch that holds ``broken`` never comes."""

    is_asynchronous = True
    broken = -1

    def launch(self, images, sizes, prompts=None):
        number = self.launched
        self.launched += 1
        self.notes.append(("launch", number))
        segmenter = self

        class Launch:
            def result(self):
                segmenter.notes.append(("wait", number))
                if number == segmenter.broken:
                    return [SubtokError("no map")] * len(images)
                return FaultySegmenter.infer(segmenter, images, sizes)

        return Launch()


def launching(broken: int = -1) -> tuple[Launching, SubobjectTokenizer]:
    segmenter = Launching(FaultyPartitioner())
    segmenter.notes, segmenter.launched, segmenter.broken = [], 0, broken
    return segmenter, SubobjectTokenizer(segmenter, size=None)


def store(tokenizer, folder) -> list:
    tokenize_dataset(CodedImages(7), tokenizer, folder, batch_size=2, executor="inline")
    return list(StoredTokens(folder).rows())


def test_two_batches_are_in_flight_and_the_tokens_are_the_same(tmp_path):
    segmenter, tokenizer = launching()
    found = store(tokenizer, tmp_path / "launched")
    plain = SubobjectTokenizer(FaultySegmenter(FaultyPartitioner()), size=None)
    expected = store(plain, tmp_path / "plain")
    assert len(found) == len(expected) == 7
    assert found == expected
    first = ["launch", "launch", "wait", "launch", "wait", "launch", "wait", "wait"]
    assert [what for what, _ in segmenter.notes] == first
    assert [number for what, number in segmenter.notes if what == "wait"] == [0, 1, 2, 3]


def test_a_batch_that_fails_stops_the_run_behind_those_before_it(tmp_path):
    segmenter, tokenizer = launching(broken=2)
    with pytest.raises(SubtokError, match="every image"):
        store(tokenizer, tmp_path)
    segmenter.broken = -1
    segmenter.notes.clear()
    assert len(store(tokenizer, tmp_path)) == 7
    launched = [number for what, number in segmenter.notes if what == "launch"]
    assert len(launched) == 2, "the two batches before it were kept"
