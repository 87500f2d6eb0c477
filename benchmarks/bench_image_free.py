"""Artificial samples a second on one core, against the floor: writing the bytes of the batch.

    python benchmarks/bench_image_free.py
    python benchmarks/bench_image_free.py --shapes TOKENS --json   # TOKENS: of `subtok tokenize`

The floor copies finished batches into fresh tensors of the same sizes, which is what no loader can
do without. Each figure is the best of several rounds in processor time, so that a shared machine
matters little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from figures import Table, add_json_option, write_json
from torch import Tensor

from subtok_data.imagefree import ImageFreeDataset, ImageFreeLoader

CATEGORIES = [f"category {number}" for number in range(150)]


@dataclass
class Words:
    """One sub-word per letter: more than any real tokenizer gives."""

    bos_token_id: int = 1
    eos_token_id: int = 2

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]


def rate(run: Callable[[], object], samples: int, rounds: int) -> float:
    """Samples a second of the fastest round."""
    best = 0.0
    for _ in range(rounds):
        start = time.process_time()
        run()
        best = max(best, samples / (time.process_time() - start))
    return best


def copied(batches: list[dict[str, Tensor]]) -> None:
    for batch in batches:
        _ = [value.clone() for value in batch.values()]


def measure(name: str, options: dict[str, Any], batch_size: int, rounds: int) -> dict[str, Any]:
    loader = ImageFreeLoader(ImageFreeDataset(CATEGORIES, num_samples=None, **options), batch_size)
    batches = iter(loader)
    some = list(islice(batches, 8))  # the first ones also fill caches
    bytes_each = sum(v.numel() * v.element_size() for b in some for v in b.values())
    samples = batch_size * len(some)
    return {
        "name": name,
        "samples_per_s": rate(lambda: list(islice(batches, 8)), samples, rounds),
        "floor_per_s": rate(lambda: copied(some), samples, rounds),
        "kilobytes": bytes_each / samples / 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--shapes", help="folder of stored tokens")
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases: dict[str, dict[str, Any]] = {
        "patches": {},
        "patches, with words": {"tokenizer": Words()},
        "regions": {"tokens": "region"},
        "patches, target of 128 pixels": {"target_size": 128},
    }
    if options.shapes:
        cases["regions, shapes of tokens"] = {"tokens": "region", "shapes": options.shapes}
    found = [measure(n, c, options.batch_size, options.rounds) for n, c in cases.items()]
    columns = ["", "samples a core-second", "of the floor", "kB each"]
    rows = [
        [r["name"], r["samples_per_s"], r["samples_per_s"] / r["floor_per_s"], r["kilobytes"]]
        for r in found
    ]
    write_json(options.json, [Table("Image-free batches", columns, rows)], results=found)
    print(f"{'':32s} {'samples/s':>10s} {'floor':>10s} {'of floor':>9s} {'kB each':>8s}")
    for one in found:
        share = one["samples_per_s"] / one["floor_per_s"]
        print(
            f"{one['name']:32s} {one['samples_per_s']:10.0f} {one['floor_per_s']:10.0f} "
            f"{share:9.0%} {one['kilobytes']:8.0f}"
        )


if __name__ == "__main__":
    main()
