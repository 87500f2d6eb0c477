"""Texts as ids, placeholders and labels, for chats, captions and prompts."""

from __future__ import annotations

import logging
import pickle

import numpy as np
import pytest
from helpers.tiny_tokenizers import CHATML, LLAMA, TAGS, byte_tokenizer, word_tokenizer
from hypothesis import given, settings, strategies as st

from subtok_data.errors import ConfigError, SampleError
from subtok_data.text import TextConfig, TextEncoder, TextRow, pad_rows

CHAT = [
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": "What is this?"},
    {"role": "assistant", "content": "A red ball."},
    {"role": "user", "content": "What?"},
    {"role": "assistant", "content": "Two dogs."},
]
V, S, E = "<|visual_token|>", "<|visual_start|>", "<|visual_end|>"


def tokens(text: str) -> list[str]:
    """Tokens of a row written by hand: · is a space, ↵ a new line, | starts or stops learning."""
    short = {"·": " ", "↵": "\n", "V": V, "S": S, "E": E}
    return [short.get(token, token) for token in text.split()]


BY_HAND = {
    "chatml": (
        CHATML,
        """<|im_start|> system ↵ Be · brief <|im_end|> ↵
        <|im_start|> user ↵ S V V E What · is · this ? <|im_end|> ↵
        <|im_start|> assistant ↵ | A · red · ball . <|im_end|> | ↵
        <|im_start|> user ↵ What ? <|im_end|> ↵
        <|im_start|> assistant ↵ | Two · dogs . <|im_end|> | ↵""",
    ),
    "llama": (
        LLAMA,
        """<s> <|head|> system <|/head|> ↵ ↵ Be · brief <|eot|>
        <|head|> user <|/head|> ↵ ↵ S V V E What · is · this ? <|eot|>
        <|head|> assistant <|/head|> ↵ ↵ | A · red · ball . <|eot|> |
        <|head|> user <|/head|> ↵ ↵ What ? <|eot|>
        <|head|> assistant <|/head|> ↵ ↵ | Two · dogs . <|eot|> |""",
    ),
    "tags": (
        TAGS,
        """<|system|> ↵ Be · brief </s> ↵
        <|user|> ↵ S V V E What · is · this ? </s> ↵
        <|assistant|> ↵ | A · red · ball . </s> | ↵
        <|user|> ↵ What ? </s> ↵
        <|assistant|> ↵ | Two · dogs . </s> | ↵""",
    ),
}


def chat_encoder(template: str, **options) -> TextEncoder:
    tokenizer = options.pop("tokenizer", None) or word_tokenizer()
    tokenizer.chat_template = template
    return TextEncoder(TextConfig(tokenizer, messages="chat", **options))


def by_hand(tokenizer, row: list[str]) -> tuple[list[int], list[int], list[int]]:
    ids, labels, types = [], [], []
    learned = False
    for token in row:
        if token == "|":
            learned = not learned
            continue
        ids.append(tokenizer.convert_tokens_to_ids(token))
        labels.append(ids[-1] if learned else -100)
        types.append(int(token == V))
    return ids, labels, types


@pytest.mark.parametrize("form", BY_HAND)
def test_chat_labels_equal_the_hand_written_row(form):
    template, row = BY_HAND[form][0], tokens(BY_HAND[form][1])
    encoder = chat_encoder(template)
    encoded = encoder.encode({"chat": CHAT})
    ours = encoded.expand([2])
    ids, labels, types = by_hand(encoder.config.tokenizer, row)
    assert ours.input_ids.tolist() == ids
    assert ours.labels.tolist() == labels
    assert ours.mm_token_type_ids.tolist() == types


@pytest.mark.parametrize("form", BY_HAND)
def test_after_prompt_learns_all_that_follows(form):
    template, row = BY_HAND[form][0], tokens(BY_HAND[form][1])
    encoder = chat_encoder(template, labels="after_prompt")
    ours = encoder.encode({"chat": CHAT}).expand([2])
    bars = [i for i, token in enumerate(row) if token == "|"]
    row = [token for i, token in enumerate(row) if i in (bars[0], bars[-1]) or token != "|"]
    assert ours.labels.tolist() == by_hand(encoder.config.tokenizer, row)[1]


def test_generation_marks_of_the_template_are_used():
    marked = CHATML.replace(
        "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n",
        "<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}{% generation %}"
        "{{ message.content }}<|im_end|>{% endgeneration %}{% else %}{{ message.content }}"
        "<|im_end|>{% endif %}{{ '\\n' }}",
    )
    ours, plain = chat_encoder(marked), chat_encoder(CHATML)
    left, right = ours.encode({"chat": CHAT}), plain.encode({"chat": CHAT})
    assert np.array_equal(left.input_ids, right.input_ids)
    assert np.array_equal(left.supervised, right.supervised)


# Without marks of generation; as SmolLM2 and Qwen 2.5 (a system text of their own) and Llama 3 do.
OPENING_TEMPLATES = {
    "smollm2": "{% for message in messages %}{% if loop.first and messages[0].role != 'system' %}"
    "<|im_start|>system\nBe brief<|im_end|>\n{% endif %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "qwen2.5": "{% if messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}"
    "<|im_end|>\n{% else %}<|im_start|>system\nBe brief<|im_end|>\n{% endif %}"
    "{% for message in messages %}{% if message.role != 'system' or not loop.first %}<|im_start|>"
    "{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama3": "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set own = messages[0].content %}{% set messages = messages[1:] %}{% else %}"
    "{% set own = '' %}{% endif %}<|head|>system<|/head|>\n\nBe brief{{ own }}<|eot|>"
    "{% for message in messages %}<|head|>{{ message.role }}<|/head|>\n\n"
    "{{ message.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}",
    "plain": LLAMA,
}


@pytest.mark.parametrize("form", OPENING_TEMPLATES)
@pytest.mark.parametrize("labels", ["assistant", "after_prompt"])
def test_an_assistants_opening_turn_is_supervised_without_its_header(form, labels):
    tokenizer = byte_tokenizer()
    encoder = chat_encoder(OPENING_TEMPLATES[form], tokenizer=tokenizer, labels=labels)
    end = "<|eot|>" if form in ("llama3", "plain") else "<|im_end|>"
    for rest in ([], [{"role": "user", "content": "What?"}]):
        encoded = encoder.encode({"chat": [{"role": "assistant", "content": "Hello"}, *rest]})
        supervised = tokenizer.decode(encoded.input_ids[encoded.supervised])
        if labels == "assistant" or not rest:
            assert supervised == f"Hello{end}"
        else:
            assert supervised.startswith(f"Hello{end}")


def test_an_opening_turn_that_no_prompt_leads_to_is_refused():
    marked = "{% for message in messages %}{{ '>' * loop.index }}{{ message.content }}{% endfor %}"
    with pytest.raises(ConfigError, match=r"turn 0 cannot be found.*generation"):
        chat_encoder(marked).encode({"chat": [{"role": "assistant", "content": "A ball"}]})


def test_templates_that_rewrite_earlier_turns_are_refused():
    rewriting = CHATML.replace("{{ message.content }}", "{{ loop.index }} of {{ messages|length }}")
    with pytest.raises(ConfigError, match="rewrites earlier turns"):
        chat_encoder(rewriting).encode({"chat": CHAT})
    with pytest.raises(ConfigError, match="no chat template"):
        chat_encoder(None).encode({"chat": CHAT})


@pytest.mark.parametrize("form", BY_HAND)
def test_generation_opens_the_assistants_turn(form):
    encoder = chat_encoder(BY_HAND[form][0])
    config = encoder.config.for_generation()
    encoded = TextEncoder(config).encode({"chat": CHAT})
    whole = encoder.encode({"chat": CHAT})
    size = len(encoded.input_ids)
    assert np.array_equal(encoded.input_ids, whole.input_ids[:size])
    assert whole.supervised[size]
    assert not encoded.supervised.any()


def test_slow_tokenizers_are_cut_where_learning_starts(monkeypatch):
    encoder = chat_encoder(CHATML)
    fast = encoder.encode({"chat": CHAT})
    monkeypatch.setattr(type(encoder.config.tokenizer), "is_fast", False)
    slow = encoder.encode({"chat": CHAT})
    assert np.array_equal(fast.input_ids, slow.input_ids)
    assert np.array_equal(fast.supervised, slow.supervised)


def test_caption_and_prompt_forms():
    tokenizer = word_tokenizer()
    caption = TextEncoder(TextConfig(tokenizer, caption="text"))
    row = caption.encode({"text": "A red ball"}).expand([1])
    bars = tokens("S V E | A · red · ball </s> |")
    assert row.input_ids.tolist() == by_hand(tokenizer, bars)[0]
    assert row.labels.tolist() == by_hand(tokenizer, bars)[1]
    asked = TextEncoder(TextConfig(tokenizer, prompt="q", answer="a"))
    sample = {"q": "What is <image>?\n", "a": "Two dogs"}
    row = asked.encode(sample).expand([2])
    bars = tokens("What · is · S V V E ? ↵ | Two · dogs </s> |")
    assert row.input_ids.tolist() == by_hand(tokenizer, bars)[0]
    assert row.labels.tolist() == by_hand(tokenizer, bars)[1]
    open_end = TextEncoder(asked.config.for_generation()).encode({"q": sample["q"]})
    assert tokenizer.convert_ids_to_tokens(open_end.input_ids.tolist())[-1] == "\n"


def test_leading_token_is_kept():
    from tokenizers.processors import TemplateProcessing

    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    encoder = TextEncoder(TextConfig(tokenizer, caption="text"))
    row = encoder.encode({"text": "A ball"}).expand([1])
    assert row.input_ids[0] == tokenizer.bos_token_id
    assert (row.input_ids == tokenizer.bos_token_id).sum() == 1


@pytest.fixture(scope="module")
def bytes_encoder():
    return TextEncoder(TextConfig(byte_tokenizer(), caption="text"))


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.text(max_size=30), min_size=1, max_size=4),
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    marked=st.booleans(),
    limit=st.none() | st.integers(1, 80),
    side=st.sampled_from(["left", "right"]),
    multiple=st.integers(1, 9),
)
def test_placeholders_equal_tokens(bytes_encoder, texts, counts, marked, limit, side, multiple):
    config = TextConfig(
        bytes_encoder.config.tokenizer,
        caption="text",
        max_length=limit,
        padding_side=side,
    )
    encoder = TextEncoder(config)
    assert config.added_tokens == ()  # added once, by the first configuration
    rows = []
    for text in texts:
        if any(t in text for t in (V, S, E, "<image>")):
            continue
        text = text + "".join(f"<image>{i}" for i in range(len(counts))) if marked else text
        encoded = encoder.encode({"text": text}, len(counts))
        needed = sum(counts) + 2 * len(counts)
        if limit is not None and needed >= limit:
            with pytest.raises(ValueError, match="max_length"):
                encoded.expand(counts)
            continue
        row = encoded.expand(counts)
        assert (row.input_ids == encoder.placeholder_id).sum() == sum(counts)
        assert np.array_equal(row.mm_token_type_ids == 1, row.input_ids == encoder.placeholder_id)
        assert (row.labels[row.mm_token_type_ids == 1] == -100).all()
        assert limit is None or len(row.input_ids) <= limit
        assert row.truncated == len(encoded.input_ids) - len(counts) + needed - len(row.input_ids)
        runs = np.diff(np.flatnonzero(np.diff(np.pad(row.mm_token_type_ids, 1))).reshape(-1, 2))
        assert runs[:, 0].tolist() == list(counts)  # images in order, each in one piece
        rows.append(row)
    if not rows:
        return
    batch = pad_rows(rows, encoder.pad_id, padding_side=side, pad_to_multiple_of=multiple)
    length = batch["input_ids"].shape[1]
    assert length % multiple == 0
    assert (batch["attention_mask"].sum(1).numpy() == [len(r.input_ids) for r in rows]).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    edge = batch["attention_mask"][:, 0 if side == "right" else -1]
    assert edge.all()
    assert ((batch["input_ids"] == encoder.placeholder_id).sum(1) == sum(counts)).all()


def test_text_survives_a_round_trip(bytes_encoder):
    encoded = bytes_encoder.encode({"text": "Zwölf Öfen\n  ok 🙂"})
    tokenizer = bytes_encoder.config.tokenizer
    assert tokenizer.decode(encoded.input_ids[1:-1]) == "Zwölf Öfen\n  ok 🙂"


def test_what_does_not_fit_names_count_and_limit():
    encoder = TextEncoder(TextConfig(word_tokenizer(), caption="text", max_length=10))
    encoded = encoder.encode({"text": "A red ball"}, 2)
    with pytest.raises(ValueError, match=r"9 visual tokens of 2 .* take 13 places.* is 10"):
        encoded.expand([4, 5])
    with pytest.raises(ValueError, match="no supervised text"):
        encoded.expand([3, 3])
    row = encoded.expand([3, 1])
    assert len(row.input_ids) == 10
    assert row.truncated == 4


def test_tokens_shrink_so_that_text_fits():
    tokenizer = word_tokenizer()
    config = TextConfig(tokenizer, caption="text", max_length=40, shrink_tokens=True)
    encoder = TextEncoder(config)
    encoded = encoder.encode({"text": "A red ball"}, 2)
    limit = encoded.visual_room
    assert limit == (40 - 6 - 4) // 2
    row = encoded.expand([limit, limit])
    assert row.truncated == 0
    assert len(row.input_ids) == 40
    long = encoder.encode({"text": "ball " * 100}, 2)
    assert long.visual_room == (20 - 4) // 2
    with pytest.raises(SampleError, match="no room for 20 images"):
        encoder.encode({"text": "ball"}, 20)
    plain = TextEncoder(TextConfig(tokenizer, caption="text", max_length=40))
    assert plain.encode({"text": "A red ball"}).visual_room is None


@pytest.mark.parametrize(
    ("row", "images", "message"),
    [
        ({"other": "x"}, 1, "no column 'text'.*'other'"),
        ({"text": ["a", "b"]}, 1, "holds list, expected str"),
        ({"text": f"a {V} b"}, 1, "spells the special token"),
        ({"text": "<image> a"}, 2, "1 image marks '<image>' for 2 images"),
    ],
)
def test_bad_rows_are_sample_errors(row, images, message):
    encoder = TextEncoder(TextConfig(word_tokenizer(), caption="text"))
    with pytest.raises(SampleError, match=message):
        encoder.encode(row, images)


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ("hello", "must be a list of messages"),
        ([{"role": "user"}], "needs 'role' and 'content'"),
        ([{"role": "user", "content": [{"type": "video"}]}], "'text' or 'image'"),
        ([{"role": "user", "content": "What?"}], "no assistant turn"),
    ],
)
def test_bad_chats_are_sample_errors(chat, message):
    with pytest.raises(SampleError, match=message):
        chat_encoder(CHATML).encode({"chat": chat})


def test_parts_place_images_where_they_stand():
    parts = [
        {"type": "text", "text": "What is "},
        {"type": "image"},
        {"type": "text", "text": " "},
        {"type": "image"},
    ]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A ball"}]
    encoder = chat_encoder(CHATML)
    row = encoder.encode({"chat": chat}, 2).expand([1, 2])
    ours = encoder.config.tokenizer.convert_ids_to_tokens(row.input_ids.tolist())
    assert ours[3:16] == tokens("What · is · S V E · S V V E <|im_end|>")


def test_tokens_are_added_once_reported_and_saved(tmp_path, caplog):
    tokenizer = word_tokenizer()
    before = len(tokenizer)
    with caplog.at_level(logging.INFO, "subtok_data"):
        config = TextConfig(tokenizer, caption="text", max_length=30)
    assert config.added_tokens == (S, V, E)
    assert len(tokenizer) == before + 3  # before there is any collator: a model made now fits
    assert config.placeholder_id == tokenizer.convert_tokens_to_ids(V) >= before
    assert f"model.resize_token_embeddings({before + 3})" in caplog.text
    assert config.for_generation().added_tokens == ()  # the tokenizer has them by now
    encoder = TextEncoder(config)
    encoder.config.save_pretrained(tmp_path)
    loaded = TextEncoder(TextConfig.from_pretrained(tmp_path))
    assert loaded.config.added_tokens == ()
    assert loaded.placeholder_id == encoder.placeholder_id
    assert loaded.config.max_length == 30
    again = pickle.loads(pickle.dumps(encoder))
    row = {"text": "A red ball"}
    for other in (loaded, again):
        assert np.array_equal(other.encode(row).input_ids, encoder.encode(row).input_ids)
    with pytest.raises(ConfigError, match="does not exist"):
        TextConfig.from_pretrained(tmp_path / "none")


def test_existing_special_tokens_stay_special():
    tokenizer = word_tokenizer(extra_special_tokens=["<|im_start|>"])
    TextEncoder(TextConfig(tokenizer, caption="text"))
    assert "<|im_start|>" in tokenizer.all_special_tokens


def test_placeholder_may_be_the_mark_of_the_model():
    tokenizer = word_tokenizer()
    config = TextConfig(tokenizer, caption="t", placeholder="<image>", start=None, end=None)
    encoder = TextEncoder(config)
    row = encoder.encode({"t": "A <image> ball"}).expand([3])
    assert (row.input_ids == encoder.placeholder_id).sum() == 3


def test_long_texts_do_not_warn(caplog):
    encoder = TextEncoder(
        TextConfig(byte_tokenizer(model_max_length=8), caption="text", max_length=20)
    )
    with caplog.at_level(logging.WARNING):
        row = encoder.encode({"text": "ball " * 50}).expand([4])
    assert not caplog.records
    assert len(row.input_ids) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "choose one of"),
        ({"caption": "a", "messages": "b"}, r"got 2"),
        ({"caption": "a", "answer": "b"}, "belongs to prompt="),
        ({"prompt": "a"}, "needs answer="),
        ({"caption": "a", "labels": "all"}, "labels='all': expected"),
        ({"caption": "a", "padding_side": "both"}, "padding_side='both': expected"),
        ({"caption": "a", "max_length": 0}, "at least 1"),
        ({"caption": "a", "shrink_tokens": True}, "needs max_length="),
        ({"caption": "a", "image_mark": ""}, "must not be empty"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TextConfig(word_tokenizer(), **options)


def test_equal_special_tokens_are_refused():
    with pytest.raises(ConfigError, match="must differ"):
        TextConfig(word_tokenizer(), caption="a", start="<x>", end="<x>")
    encoder = TextEncoder(TextConfig(word_tokenizer(), caption="a"))
    with pytest.raises(ValueError, match="2 counts for 1 images"):
        encoder.encode({"a": "ball"}).expand([1, 2])


def test_tokenizers_without_padding_token_pad_with_what_they_have():
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    assert TextEncoder(TextConfig(tokenizer, caption="a")).pad_id == tokenizer.eos_token_id


def test_padding_of_nothing_is_empty():
    assert pad_rows([], 0)["input_ids"].shape == (0, 0)
    row = TextRow(np.arange(3), np.arange(3), np.zeros(3, np.int64))
    left = pad_rows([row], 9, padding_side="left", pad_to_multiple_of=5)
    assert left["input_ids"].tolist() == [[9, 9, 0, 1, 2]]
    assert left["labels"].tolist() == [[-100, -100, -100, 1, 2]]


def test_a_tokenizer_of_the_package_tokenizers_is_refused():
    from tokenizers import Tokenizer, models

    with pytest.raises(ConfigError, match=r"PreTrainedTokenizerFast\(tokenizer_object="):
        TextConfig(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), caption="caption")
