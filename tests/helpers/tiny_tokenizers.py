"""Small tokenizers and chat templates, built on the spot."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for message in messages %}<|head|>{{ message.role }}<|/head|>\n\n"
    "{{ message.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
TAGS = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>"]
SPECIAL += ["<|eot|>", "<|user|>", "<|assistant|>", "<|system|>"]
CORPUS = ["What is this? A red ball on the grass. Two dogs, a cat user assistant system\n\n"] * 3


def word_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """Words, white space and punctuation as tokens: ids that can be read by eye."""
    words = ["What", "is", "this", "?", "A", "red", "ball", "Two", "dogs", ".", "user", "assistant"]
    words += ["system", "\n", " ", "\n\n", "Be", "brief"]
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "isolated"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation(),
        ]
    )
    return _wrapped(core, options)


def byte_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-like models have: any text goes through it unchanged."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(CORPUS, trainer)
    return _wrapped(core, options)


def _wrapped(core: Tokenizer, options: dict[str, Any]) -> PreTrainedTokenizerFast:
    core.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        **options,
    )
