"""``SubobjectProcessor`` goes wherever a processor of transformers goes."""

from __future__ import annotations

import copy
import json
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.tiny_llava import small_llava
from helpers.tiny_tokenizers import CHATML, LLAMA, TAGS, byte_tokenizer, word_tokenizer
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoProcessor, AutoTokenizer, Trainer, TrainingArguments

from subtok_data import (
    PatchSegmenter,
    PixelConfig,
    SubobjectCollator,
    SubobjectProcessor,
    SubobjectTokenizer,
    TextConfig,
)
from subtok_data.batch import VISUAL_KEYS, model_inputs
from subtok_data.devices import DeviceError
from subtok_data.errors import ConfigError, SampleError, WeightsError
from subtok_data.integrations import generation_inputs, use_subobject_tokens

PARTS = (
    "{% for message in messages %}<|{{ message.role }}|>\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}\n"
    "{% endfor %}"
)
MARKED = (
    "{% for message in messages %}<|{{ message.role }}|>\n{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}\n{% endfor %}"
)


def pictures(count: int = 3, sides: tuple[int, ...] = (64, 32)) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(sides[i % len(sides)], 64, 3) for i in range(count)]
    return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


def processor_of(template: str | None = CHATML, **options: Any) -> SubobjectProcessor:
    tokenizer = byte_tokenizer(**({} if template is None else {"chat_template": template}))
    return SubobjectProcessor(SubobjectTokenizer(PatchSegmenter(16), size=64), tokenizer, **options)


def converted(processor: SubobjectProcessor) -> Any:
    model = small_llava(len(processor.tokenizer), image_size=64)
    return use_subobject_tokens(model, processor.image_token_id)


def equal(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# --- what a call gives --------------------------------------------------------------------------


@pytest.mark.parametrize("segmenter", [None, PatchSegmenter(16)])
def test_a_call_gives_the_batch_of_the_collator(segmenter):
    images = pictures()
    cutter = SubobjectTokenizer(segmenter, size=64, max_tokens=9, min_area=0)
    tokenizer = byte_tokenizer()
    options: dict[str, Any] = {"pixels": PixelConfig(size=(32, 32)), "shape_size": 4}
    processor = SubobjectProcessor(cutter, tokenizer, **options)
    text = TextConfig(tokenizer, prompt="question", answer="answer", placeholder="<image>")
    collator = SubobjectCollator(cutter, text=text, **options)
    rows = [{"image": image, "question": "What?", "answer": " A ball"} for image in images]
    wanted = collator(rows)
    found = processor(
        images=images, text=["<image>What? A ball</s>"] * 3, padding=True, return_tensors="pt"
    )
    for name in ("input_ids", "attention_mask", "pixel_values", *VISUAL_KEYS):
        assert (name in found) == (name in wanted), name
        if name in found:
            assert torch.equal(found[name], wanted[name]), name


def test_images_are_one_or_a_list_or_a_list_for_each_text(tmp_path):
    processor = processor_of()
    one, two, three = pictures()
    Image.fromarray(two).save(tmp_path / "two.png")
    texts = ["<image>one", "none", "<image>two<image>three"]
    flat = processor(images=[one, two, three], text=texts, padding=True, return_tensors="pt")
    nested = processor(
        images=[[one], [], [str(tmp_path / "two.png"), Image.fromarray(three)]],
        text=texts,
        padding=True,
        return_tensors="pt",
    )
    equal(flat, nested)
    placeholders = (flat["input_ids"] == processor.image_token_id).sum(1)
    assert placeholders.tolist() == [16, 0, 8 + 16]
    assert flat["num_visual_tokens"].tolist() == [16, 8, 16]
    single = processor(images=one, text="<image>one", return_tensors="pt")
    assert torch.equal(single["visual_token_map"][0], flat["visual_token_map"][0])
    assert "input_ids" not in processor(images=one)
    assert "pixel_values" not in processor(text="none")
    assert isinstance(processor(images=one, text="<image>")["input_ids"][0], list)
    typed = processor(
        images=one, text="<image>a", return_tensors="pt", return_mm_token_type_ids=True
    )
    assert typed["mm_token_type_ids"].sum() == 16


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ConfigError, "give images="),
        ({"text": "a", "videos": ["b.mp4"]}, ConfigError, "videos= is not taken"),
        ({"text": "a", "images_kwargs": {"size": 3}}, ConfigError, "images_kwargs= is not taken"),
        ({"text": 3}, ConfigError, "text is the number 3"),
        ({"text": ["a", None]}, ConfigError, "text 1 is None"),
        ({"text": "a", "images": [0]}, SampleError, "have 0 marks '<image>' for 1 images"),
        ({"text": "<image>"}, SampleError, "have 1 marks '<image>' for 0 images"),
        ({"text": ["<image>", "b"], "images": [[], [0]]}, SampleError, "sample 0 failed .* 1 mark"),
        ({"text": ["<image>", "b"], "images": [[0]]}, ConfigError, "1 lists of images for 2"),
        (
            {"text": ["a", "<image>b"], "images": [0], "truncation": True, "max_length": 9},
            SampleError,
            r"sample 1 .* 8 of the 16 visual tokens of 1 image\(s\) .* max_length=9",
        ),
        ({"text": "<image>", "images": ["no/such.png"]}, SampleError, r"no/such\.png"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments, error, words):
    given = arguments.get("images")
    if given is not None:

        def filled(value: Any) -> Any:
            return (
                [filled(one) for one in value]
                if isinstance(value, list)
                else (pictures()[value] if value == 0 else value)
            )

        arguments = {**arguments, "images": filled(given)}
    with pytest.raises(error, match=words):
        processor_of()(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((PatchSegmenter(16), byte_tokenizer()), "subobject_tokenizer is a PatchSegmenter"),
        ((SubobjectTokenizer(PatchSegmenter(16)), "gpt2"), "tokenizer is the string 'gpt2'"),
    ],
)
def test_wrong_parts_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        SubobjectProcessor(*arguments)


# --- chat templates -----------------------------------------------------------------------------


def chat(image: Any = None) -> list[dict[str, Any]]:
    shown = {"type": "image"} if image is None else {"type": "image", "image": image}
    return [
        {"role": "user", "content": [shown, {"type": "text", "text": "Who is this?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A red ball."}]},
    ]


@pytest.mark.parametrize("template", [CHATML, LLAMA, TAGS, PARTS])
def test_chats_with_images_go_through_any_template(template):
    processor = processor_of(template)
    text = processor.apply_chat_template(chat())
    assert text.count("<image>") == 1
    assert "<image>Who is this?" in text
    assert "'type'" not in text
    (image,) = pictures(1)
    inputs = processor.apply_chat_template(
        chat(image), tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 16
    expected = processor(images=[image], text=[text], add_special_tokens=False, return_tensors="pt")
    equal(inputs, expected)


@pytest.mark.parametrize("template", [CHATML, LLAMA, TAGS, "\n" + TAGS])
def test_an_extended_template_writes_the_same_for_text(template):
    plain = [{"role": "user", "content": " Who?\n"}, {"role": "assistant", "content": "A dog"}]
    tokenizer = byte_tokenizer(chat_template=template)
    expected = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    found = processor_of(template).apply_chat_template(plain, add_generation_prompt=True)
    assert found == expected


def test_the_template_of_a_vision_language_model_is_left_alone():
    assert processor_of(PARTS).chat_template == PARTS
    assert processor_of(CHATML).chat_template != CHATML
    assert processor_of(None).chat_template is None
    again = SubobjectProcessor(
        SubobjectTokenizer(PatchSegmenter(16)),
        byte_tokenizer(chat_template=processor_of(CHATML).chat_template),
    )
    assert again.chat_template == processor_of(CHATML).chat_template


def test_the_mask_of_the_assistant_is_where_it_speaks():
    processor = processor_of(MARKED)
    batch = [chat(image) for image in pictures(2)]
    inputs = processor.apply_chat_template(
        batch,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True},
    )
    for ids, mask in zip(inputs["input_ids"], inputs["assistant_masks"], strict=True):
        assert processor.decode(ids[mask.bool()]) == "A red ball.</s>"


# --- folders ------------------------------------------------------------------------------------


def test_saved_and_read_again_gives_the_same(tmp_path):
    cutter = SubobjectTokenizer(size=64, max_tokens=9)
    options: dict[str, Any] = {"pixels": PixelConfig(size=(32, 48)), "start": None, "shape_size": 4}
    tokenizer = byte_tokenizer(chat_template=CHATML)
    processor = SubobjectProcessor(cutter, tokenizer, image_token="<pic>", **options)
    processor.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))  # beside a model's own weights
    call = {"images": pictures(), "text": ["<pic>a", "b<pic>", "<pic>"], "padding": True}
    expected = processor(**call, return_tensors="pt")
    for again in (
        SubobjectProcessor.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(str(tmp_path), trust_remote_code=True),
    ):
        assert isinstance(again, SubobjectProcessor)
        assert again.added_tokens == ()
        assert again.to_dict() == processor.to_dict()
        assert again.chat_template == processor.chat_template
        assert again.subobject_tokenizer.config_hash == cutter.config_hash
        equal(again(**call, return_tensors="pt"), expected)
    assert SubobjectTokenizer.from_pretrained(tmp_path).config_hash == cutter.config_hash
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == len(tokenizer)


def test_folders_that_hold_no_processor_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"processor_config\.json is missing"):
        SubobjectProcessor.from_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "LlavaProcessor"}')
    with pytest.raises(ConfigError, match="is not of a SubobjectProcessor"):
        SubobjectProcessor.from_pretrained(tmp_path)


def test_code_in_the_folder_is_never_run(tmp_path):
    processor_of().save_pretrained(tmp_path)
    (tmp_path / "code.py").write_text("raise SystemExit('code was run')")
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("tokenizer_class")
    config["auto_map"] = {"AutoTokenizer": ["code.Words", None]}
    file.write_text(json.dumps(config))
    file = tmp_path / "processor_config.json"
    config = {**json.loads(file.read_text()), "auto_map": {"AutoProcessor": "code.Processor"}}
    file.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="auto_map"):
        AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)


# --- processes ----------------------------------------------------------------------------------


class Collate:
    """All that a user writes for transformers' Trainer."""

    def __init__(self, processor: SubobjectProcessor) -> None:
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        batch = self.processor(
            images=[row["image"] for row in rows],
            text=[f"<image>{row['caption']}</s>" for row in rows],
            padding=True,
            return_tensors="pt",
        )
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return batch


def rows(count: int = 12) -> list[dict[str, Any]]:
    return [
        {"image": image, "caption": "a ball " * (1 + i % 3), "length": 1 + i % 3}
        for i, image in enumerate(pictures(count))
    ]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_give_the_same_batches(context):
    cutter = SubobjectTokenizer(size=64, max_tokens=9, device="cpu")
    collate = Collate(SubobjectProcessor(cutter, byte_tokenizer()))
    here = list(DataLoader(rows(4), batch_size=2, collate_fn=collate))
    workers = DataLoader(
        rows(4), batch_size=2, collate_fn=collate, num_workers=1, multiprocessing_context=context
    )
    for expected, found in zip(here, workers, strict=True):
        equal(found, expected)


def test_copies_work_alone():
    processor = processor_of(pixels=PixelConfig(size=(32, 32)), shape_size=4)
    call = {"images": pictures(1), "text": "<image>a", "return_tensors": "pt"}
    expected = processor(**call)
    for copied in (pickle.loads(pickle.dumps(processor)), copy.deepcopy(processor)):
        equal(copied(**call), expected)
        assert repr(copied) == repr(processor)


def test_an_accelerator_in_a_worker_is_refused(monkeypatch):
    processor = processor_of()
    monkeypatch.setattr(PatchSegmenter, "device", property(lambda self: torch.device("cuda", 0)))
    monkeypatch.setattr("subtok_data.devices.get_worker_info", lambda: SimpleNamespace(id=1))
    with pytest.raises(DeviceError, match="num_workers=0"):
        processor(images=pictures(1), text="<image>")


# --- models -------------------------------------------------------------------------------------


def test_labels_on_visual_tokens_are_not_supervised():
    processor = processor_of(pixels=PixelConfig(size=(64, 64)))
    model = converted(processor)
    batch = Collate(processor)(rows(3))
    given = batch["labels"].clone()
    assert (given == processor.image_token_id).sum() == 16 + 8 + 16
    masked = given.masked_fill(given == processor.image_token_id, -100)
    loss = model(**batch).loss
    assert torch.equal(batch["labels"], given)  # what the caller has stays as it is
    assert torch.equal(model(**{**batch, "labels": masked}).loss, loss)
    assert torch.isfinite(loss)


def test_a_batch_may_mix_texts_with_and_without_images():
    processor = processor_of(pixels=PixelConfig(size=(64, 64)))
    model = converted(processor)
    both = processor(
        images=[[pictures()[0]], []], text=["<image>a", "b"], padding=True, return_tensors="pt"
    )
    assert torch.isfinite(model(**both, labels=both["input_ids"]).loss)
    text = processor(text=["a ball", "b ball"], padding=True, return_tensors="pt")
    assert torch.isfinite(model(**text, labels=text["input_ids"]).loss)


def test_a_model_writes_after_a_prompt():
    processor = processor_of(pixels=PixelConfig(size=(64, 64)))
    model = converted(processor).eval()
    inputs = processor(
        images=pictures(2),
        text=["<image>Who?", "<image>Who is this?"],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    written = model.generate(**generation_inputs(inputs, model), max_new_tokens=3, do_sample=False)
    assert len(processor.batch_decode(written)) == 2


def test_word_tokenizers_keep_placeholders_apart():
    processor = SubobjectProcessor(
        SubobjectTokenizer(PatchSegmenter(16), size=64), word_tokenizer()
    )
    inputs = processor(images=pictures(1), text="What<image>is", return_tensors="pt")
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 16


# --- trainers -----------------------------------------------------------------------------------


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def arguments(**options: Any) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "report_to": "none",
        "use_cpu": True,
        "save_steps": 2,
        "max_steps": 8,  # six are an epoch
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **options,
    }


LENGTHS = {"remove_unused_columns": False, "train_sampling_strategy": "group_by_length"}


@pytest.mark.parametrize("options", [{}, LENGTHS], ids=["random", "group_by_length"])
def test_trainer_needs_nothing_else_of_ours(tmp_path, options):
    def trainer() -> Trainer:
        processor = processor_of(pixels=PixelConfig(size=(64, 64)))
        return Trainer(
            converted(processor),
            TrainingArguments(
                str(tmp_path), **arguments(**{"remove_unused_columns": False, **options})
            ),
            data_collator=Collate(processor),
            processing_class=processor,
            train_dataset=Dataset.from_list(
                [{**row, "image": Image.fromarray(row["image"])} for row in rows()]
            ),
        )

    whole = trainer()
    whole.train()
    assert losses(whole)[-1] < losses(whole)[0]
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert losses(resumed) == losses(whole)
    saved = AutoProcessor.from_pretrained(tmp_path / "checkpoint-8")
    assert isinstance(saved, SubobjectProcessor)


def conversations() -> Dataset:
    return Dataset.from_list(
        [
            {
                "image": Image.fromarray(row["image"]),
                "prompt": [{"role": "user", "content": "Who?"}],
                "completion": [{"role": "assistant", "content": row["caption"]}],
                "length": row["length"],
            }
            for row in rows()
        ]
    )


def sft_trainer(folder: Any, processor: SubobjectProcessor, **options: Any) -> Any:
    trl = pytest.importorskip("trl", reason="TRL is not installed: pip install 'subtok-data[trl]'")
    return trl.SFTTrainer(
        converted(processor),
        trl.SFTConfig(
            str(folder), bf16=False, activation_checkpointing=False, **arguments(**options)
        ),
        train_dataset=conversations(),
        processing_class=processor,
    )


@pytest.mark.parametrize(
    "options",
    [{}, LENGTHS, {"dataloader_num_workers": 2}, {"gradient_accumulation_steps": 2}],
    ids=["random", "group_by_length", "workers", "accumulated"],
)
def test_trl_trains_and_resumes(tmp_path, options):
    def trainer() -> Any:
        processor = processor_of(pixels=PixelConfig(size=(64, 64)))
        return sft_trainer(tmp_path, processor, **options)

    whole = trainer()
    assert type(whole.data_collator).__module__.startswith("trl.")
    whole.train()
    assert losses(whole)[-1] < losses(whole)[0]
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert losses(resumed) == losses(whole)


@torch.no_grad()
def test_trl_has_the_loss_of_the_collator(tmp_path):
    processor = processor_of(pixels=PixelConfig(size=(64, 64)))
    trainer = sft_trainer(tmp_path, processor)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    supervised = batch["labels"] != -100
    assert not (batch["input_ids"][supervised] == processor.image_token_id).any()
    text = TextConfig(
        processor.tokenizer,
        messages="messages",
        labels="after_prompt",
        placeholder="<image>",
    )
    collator = SubobjectCollator(
        processor.subobject_tokenizer, text=text, pixels=PixelConfig(size=(64, 64))
    )
    ours = collator(
        [
            {"image": row["image"], "messages": [*row["prompt"], *row["completion"]]}
            for row in conversations().select(range(3))
        ]
    )
    assert torch.equal(ours["pixel_values"], batch["pixel_values"])
    # TRL also supervises the line break behind the last turn.
    ends = [len(row[row != processor.tokenizer.pad_token_id]) - 1 for row in batch["input_ids"]]
    batch["labels"][torch.arange(3), ends] = -100
    model = trainer.model.eval()
    expected = model(**model_inputs(ours, model)).loss
    assert torch.allclose(model(**batch).loss, expected, rtol=1e-6)


def test_rows_of_unequal_length_ask_for_padding():
    processor = processor_of()
    texts = ["<image>a ball", "<image>two dogs and a ball"]
    with pytest.raises(ConfigError, match=r"make rows of \d+, \d+ tokens.*give padding=True"):
        processor(images=pictures(2), text=texts, return_tensors="pt")
    assert len(processor(images=pictures(2), text=texts)["input_ids"]) == 2


def test_a_processor_without_a_chat_template_says_where_to_get_one():
    chat = [{"role": "user", "content": "Who?"}]
    with pytest.raises(ConfigError, match=r"give SubobjectProcessor\(…, chat_template="):
        processor_of(None).apply_chat_template(chat)
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    assert processor_of(None).apply_chat_template(chat, chat_template=template) == "Who?"
