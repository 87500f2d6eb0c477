"""Text, images and tokens together, through the collator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.tiny_tokenizers import CHATML, byte_tokenizer
from torch.utils.data import DataLoader

from subtok_data import (
    PatchSegmenter,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectLoader,
    SubobjectTokenizer,
    TextConfig,
    validate_batch,
)
from subtok_data.errors import ConfigError, SampleError
from subtok_data.text import text_efficiency, unpack_batch


def picture(seed: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Blocks of random colours."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return blocks.repeat(16, 0).repeat(16, 1)


def rows(count: int) -> list[dict]:
    texts = ["a red ball", "two dogs on the grass", "what?", "A cat. " * 6]
    return [
        {"image": picture(i, 64 + 16 * (i % 3)), "caption": texts[i % 4], "id": i}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def cutter() -> SubobjectTokenizer:
    return SubobjectTokenizer(PatchSegmenter(16), size=96)


def collator(cutter: SubobjectTokenizer, packing: bool = False, **options) -> SubobjectCollator:
    text = TextConfig(options.pop("tokenizer", None) or byte_tokenizer(), **options)
    return SubobjectCollator(cutter, text=text, packing=packing)


def placeholder(own: SubobjectCollator) -> int:
    config = own.text
    return config.tokenizer.convert_tokens_to_ids(config.placeholder)


def test_batch_keeps_the_contract(cutter):
    own = collator(cutter, caption="caption")
    batch = own(rows(6))
    validate_batch(batch, placeholder_id=placeholder(own))
    assert next(iter(batch)) == "input_ids"
    assert "caption" not in batch
    assert batch["id"].tolist() == list(range(6))
    assert len(set(batch["num_visual_tokens"].tolist())) > 1


def test_several_images_per_sample(cutter):
    own = collator(cutter, caption="caption")
    samples = [
        {"image": [picture(0), picture(1, 96)], "caption": "first <image> then <image> end"},
        {"image": [picture(2)], "caption": "only one"},
    ]
    batch = own(samples)
    validate_batch(batch, placeholder_id=placeholder(own))
    assert batch["image_to_sample"].tolist() == [0, 0, 1]
    runs = torch.diff(batch["mm_token_type_ids"][0], prepend=torch.tensor([0]))
    starts, stops = (runs == 1).nonzero()[:, 0], (runs == -1).nonzero()[:, 0]
    assert (stops - starts).tolist() == batch["num_visual_tokens"][:2].tolist()


def test_left_padding_for_generation(cutter):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    config = TextConfig(tokenizer, messages="chat").for_generation()
    own = SubobjectCollator(cutter, text=config)
    chat = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A ball"}]
    long = [{"role": "user", "content": "What is this? " * 5}]
    batch = own([{"image": picture(0), "chat": chat}, {"image": picture(1), "chat": long}])
    validate_batch(batch, placeholder_id=placeholder(own), padding_side="left")
    assert (batch["labels"] == -100).all()
    ends = tokenizer.batch_decode(batch["input_ids"][:, -12:])
    assert all(end.endswith("<|im_start|>assistant\n") for end in ends)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("multiple", [1, 16])
def test_supervised_rows_on_either_side(cutter, side, multiple):
    """The same rows, labels included, whichever side is padded; the other side is refused."""
    config = TextConfig(
        byte_tokenizer(), caption="text", padding_side=side, pad_to_multiple_of=multiple
    )
    collate = SubobjectCollator(cutter, text=config)
    rows = [
        {"image": picture(0), "text": "A ball"},
        {"image": picture(1), "text": "A red ball" * 4},
    ]
    batch = collate(rows)
    options = {"placeholder_id": placeholder(collate)}
    validate_batch(batch, padding_side=side, **options)
    with pytest.raises(ValueError, match="not padded on the"):
        validate_batch(batch, padding_side={"left": "right", "right": "left"}[side], **options)
    for place, row in enumerate(rows):
        alone = collate([row])
        kept, own = batch["attention_mask"][place] == 1, alone["attention_mask"][0] == 1
        for key in ("input_ids", "labels", "mm_token_type_ids"):
            assert batch[key][place][kept].tolist() == alone[key][0][own].tolist()


def test_packed_is_the_same_batch(cutter):
    tokenizer = byte_tokenizer()
    padded = collator(cutter, tokenizer=tokenizer, caption="caption")(rows(5))
    packed = collator(cutter, packing=True, tokenizer=tokenizer, caption="caption")(rows(5))
    restored = unpack_batch(packed, pad_id=tokenizer.pad_token_id)
    assert restored.keys() == padded.keys()
    for name, value in padded.items():
        assert torch.equal(torch.as_tensor(restored[name]), torch.as_tensor(value)), name
    before, after = text_efficiency(padded), text_efficiency(packed)
    assert before["text_padding"] > 0
    assert after["text_padding"] == 0
    assert packed["input_ids"].shape[1] == before["packed_length"]


def test_packing_is_refused_by_the_dispatcher(cutter):
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    own = collator(cutter, packing=True, caption="caption")
    config = DataLoaderConfiguration(dispatch_batches=True)
    loader = DataLoader(SubobjectDataset(rows(4)), batch_size=2, collate_fn=own)
    prepared = Accelerator(cpu=True, dataloader_config=config).prepare(loader)
    with pytest.raises(ConfigError, match="dispatch_batches=False"):
        next(iter(prepared))
    prepared.end()
    assert "cu_seq_lens_q" in next(iter(loader))


def test_visual_tokens_shrink_to_fit(cutter):
    tokenizer = byte_tokenizer()
    free = collator(cutter, tokenizer=tokenizer, caption="caption")(rows(2))
    assert free["num_visual_tokens"].min() > 12
    options = {"tokenizer": tokenizer, "caption": "caption", "max_length": 24}
    own = collator(cutter, **options, shrink_tokens=True)
    batch = own(rows(2))
    validate_batch(batch, placeholder_id=placeholder(own))
    assert batch["input_ids"].shape[1] <= 24
    assert (batch["labels"] != -100).any(1).all()
    with pytest.raises(SampleError, match=r"sample.* visual tokens of 1 image.*max_length is 12"):
        collator(cutter, tokenizer=tokenizer, caption="caption", max_length=12)(rows(2))


def test_what_does_not_fit_is_replaced_and_counted(cutter):
    text = TextConfig(byte_tokenizer(), caption="caption", max_length=30)
    patches = SubobjectTokenizer(PatchSegmenter(16), size=96)
    own = SubobjectCollator(patches, text=text, on_error="replace")
    small, large = {"image": picture(0, 48, 96)}, {"image": picture(1, 96, 96)}
    batch = own([{**small, "caption": "a ball"}, {**large, "caption": "a ball"}])
    validate_batch(batch, placeholder_id=placeholder(own))
    assert batch["num_visual_tokens"].tolist() == [24, 24]
    assert len(own.replaced) == 1
    assert "36 visual tokens" in own.replaced[0].reason


def test_workers_and_loader_give_the_same_text(cutter):
    own = collator(cutter, caption="caption")
    dataset = SubobjectDataset(rows(6))
    plain = [dict(b) for b in DataLoader(dataset, batch_size=3, collate_fn=own)]
    options = {"batch_size": 3, "executor": "thread", "num_workers": 1}
    with SubobjectLoader(dataset, collator=own, **options) as loader:
        ahead = list(loader)
    for left, right in zip(plain, ahead, strict=True):
        for name in ("input_ids", "labels", "attention_mask", "mm_token_type_ids"):
            assert torch.equal(left[name], right[name]), name
