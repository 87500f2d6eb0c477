"""Tokenize a Hugging Face stream: nothing is downloaded as a whole, nothing comes twice.

python examples/stream_dataset.py --workers 2
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from typing import Any

import datasets
from PIL import Image
from skimage import data

from subtok_data import SubobjectIterableDataset, SubobjectLoader, SubobjectTokenizer


def rows(shards: list[str]) -> Iterator[dict[str, Any]]:
    """Stands in for a remote dataset: each shard gives crops of one photo."""
    for shard in shards:
        photo = Image.fromarray(getattr(data, shard)())
        for left in range(0, 120, 40):
            buffer = io.BytesIO()
            photo.crop((left, 0, left + 240, 240)).save(buffer, "JPEG")
            yield {"image": {"bytes": buffer.getvalue(), "path": None}, "name": shard}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()

    # In your own work: datasets.load_dataset(name, split="train", streaming=True)
    stream = datasets.IterableDataset.from_generator(
        rows,
        gen_kwargs={"shards": ["astronaut", "chelsea", "coffee", "rocket"]},
        features=datasets.Features({"image": datasets.Image(), "name": datasets.Value("string")}),
    )
    samples = SubobjectIterableDataset(stream, on_error="replace")
    tokenizer = SubobjectTokenizer(max_tokens=32, size=args.size)
    with SubobjectLoader(samples, tokenizer, batch_size=4, num_workers=args.workers) as loader:
        for batch in loader:
            print(batch["name"], batch["num_visual_tokens"].tolist())
        print(loader.stats().report())


if __name__ == "__main__":
    main()
