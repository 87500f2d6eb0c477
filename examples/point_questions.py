"""A small decoder that answers "what is at x, y?" from the sequence of an image's tokens.

Used by ``probe_tokens.py``. The sequence is the visual tokens, then questions of six words each:
"what at X Y ?", and the words of the category. A question sees the visual tokens and its own words
before, not the other questions, so many are trained in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["answer_questions"]

PLACES = 32  # along each axis
QUESTION = 4  # words: at, X, Y, ?
LONGEST = 3  # words of an answer, with the end
ASKED = ("patch", "slic", "strength")


class Vocabulary:
    """Numbers of words: first the coordinates, then those of the categories."""

    def __init__(self, categories: Sequence[str]) -> None:
        words = sorted({word for name in categories for word in name.split()})
        self.at, self.ask, self.end = 2 * PLACES, 2 * PLACES + 1, 2 * PLACES + 2
        number = {word: 2 * PLACES + 3 + place for place, word in enumerate(words)}
        self.size = 2 * PLACES + 3 + len(words)
        answers = [[number[word] for word in name.split()[: LONGEST - 1]] for name in categories]
        self.answers = torch.tensor([(a + [self.end] * LONGEST)[:LONGEST] for a in answers])


class Decoder(nn.Module):
    """Transformer over visual tokens and the words of questions."""

    def __init__(self, features: int, words: int, width: int = 96, layers: int = 2) -> None:
        super().__init__()
        self.see = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, width))
        self.read = nn.Embedding(words, width)
        self.order = nn.Parameter(0.02 * torch.randn(QUESTION + LONGEST, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.write = nn.Linear(width, words)

    def forward(self, visual: Tensor, absent: Tensor, text: Tensor) -> Tensor:
        """Logits (I, Q, L, words) of the next word, for questions (I, Q, L)."""
        count, questions, length = text.shape
        tokens = visual.shape[1]
        x = torch.cat(
            [self.see(visual), (self.read(text) + self.order[:length]).flatten(1, 2)], dim=1
        )
        place = torch.arange(questions * length)
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
        hidden[:, :tokens] = False
        same = place[:, None] // length == place // length
        hidden[tokens:, tokens:] = ~(same & (place[:, None] >= place))
        nothing = torch.zeros(count, questions * length, dtype=torch.bool)
        x = self.body(x, mask=hidden, src_key_padding_mask=torch.cat([absent, nothing], dim=1))
        return self.write(x[:, tokens:]).unflatten(1, (questions, length))


def answer_questions(
    images: Mapping[str, Sequence[Any]],
    labels: Sequence[NDArray[Any]],
    categories: Sequence[str],
    steps: int,
    seeds: int,
    folds_of: Callable[[int, int], list[NDArray[np.int64]]],
) -> dict[str, list[float]]:
    """Per cent of right answers about held-out images, for each method, one entry a seed.

    ``images`` are the ``Tokens`` of ``probe_tokens.py``. "blind" sees one
    token of zeros.
    """
    words = Vocabulary(categories)
    found: dict[str, list[float]] = {}
    for method in (*ASKED, "blind"):
        tokens = images.get(method)
        seen = [_visual(one) for one in tokens] if tokens else [torch.zeros(1, 4)] * len(labels)
        found[method] = []
        for seed in range(seeds):
            held = folds_of(len(labels), seed)[0]
            rest = np.setdiff1d(np.arange(len(labels)), held)
            torch.manual_seed(seed)
            model = Decoder(seen[0].shape[1], words.size)
            _train(model, [seen[i] for i in rest], [labels[i] for i in rest], words, steps, seed)
            right = _right(model, [seen[i] for i in held], [labels[i] for i in held], words)
            found[method].append(100 * right)
        print(f"questions, {method}: {np.mean(found[method]):.1f} % right", flush=True)
    return found


def _visual(tokens: Any) -> Tensor:
    """Features, and the share of each cell of an 8 x 8 grid that the token has."""
    token_map, count = tokens.token_map, len(tokens.labels)
    height, width = token_map.shape
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    cells = rows[:, None] * 8 + columns
    table = np.bincount(token_map.ravel() * 64 + cells.ravel(), minlength=64 * count)
    shares = table.reshape(count, 64) / (height * width / 64)
    return torch.cat([tokens.vectors, torch.from_numpy(shares).float()], dim=1)


def _questions(
    labels: NDArray[Any], words: Vocabulary, count: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Texts (count, L) of questions with answers about random points, and the categories."""
    ys, xs = np.nonzero(labels >= 0)
    chosen = rng.integers(0, len(ys), count)
    y, x = ys[chosen], xs[chosen]
    category = torch.from_numpy(labels[y, x].astype(np.int64))
    height, width = labels.shape
    question = np.stack(
        [
            np.full(count, words.at),
            x * PLACES // width,
            PLACES + y * PLACES // height,
            np.full(count, words.ask),
        ],
        axis=1,
    )
    return torch.cat([torch.from_numpy(question), words.answers[category]], dim=1), category


def _padded(seen: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    visual = nn.utils.rnn.pad_sequence(list(seen), batch_first=True)
    lengths = torch.tensor([len(one) for one in seen])
    return visual, torch.arange(visual.shape[1]) >= lengths[:, None]


def _train(
    model: Decoder,
    seen: Sequence[Tensor],
    labels: Sequence[NDArray[Any]],
    words: Vocabulary,
    steps: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        chosen = rng.choice(len(seen), min(8, len(seen)), replace=False)
        text = torch.stack([_questions(labels[i], words, 16, rng)[0] for i in chosen])
        visual, absent = _padded([seen[i] for i in chosen])
        logits = model(visual, absent, text[..., :-1])[:, :, QUESTION - 1 :]
        loss = F.cross_entropy(logits.flatten(0, 2), text[..., QUESTION:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.inference_mode()
def _right(
    model: Decoder, seen: Sequence[Tensor], labels: Sequence[NDArray[Any]], words: Vocabulary
) -> float:
    """Share of questions whose every word is answered right, word after word."""
    rng = np.random.default_rng(0)
    model.eval()
    right = total = 0
    for visual, known in zip(seen, labels, strict=True):
        text, category = _questions(known, words, 64, rng)
        written = text[None, :, :QUESTION]
        for _ in range(LONGEST):
            logits = model(*_padded([visual]), written)
            written = torch.cat([written, logits[:, :, -1:].argmax(-1)], dim=2)
        right += int((written[0, :, QUESTION:] == words.answers[category]).all(1).sum())
        total += len(category)
    return right / total
