"""Wrap a Hugging Face dataset of images and read batches of subobject tokens.

Run it as it is on photos that come with scikit-image, or on a dataset of your own:

    python examples/wrap_hf_dataset.py
    python examples/wrap_hf_dataset.py --dataset my_data/ --image-column photo --workers 4
"""

from __future__ import annotations

import argparse

from datasets import Dataset, load_from_disk
from PIL import Image
from skimage import data

from subtok_data import SubobjectLoader, SubobjectTokenizer, validate_batch


def bundled_photos() -> Dataset:
    names = ["astronaut", "chelsea", "coffee", "rocket"]
    images = [Image.fromarray(getattr(data, name)()) for name in names]
    return Dataset.from_dict({"image": images, "name": names})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="folder written by save_to_disk")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()

    dataset = load_from_disk(args.dataset) if args.dataset else bundled_photos()
    tokenizer = SubobjectTokenizer(max_tokens=args.max_tokens, size=args.size)
    with SubobjectLoader(
        dataset,
        tokenizer,
        batch_size=args.batch_size,
        shuffle=True,
        num_workers=args.workers,
        image_column=args.image_column,
    ) as loader:
        for batch in loader:
            validate_batch(batch)  # the contract of docs/batch_format.md, checked
            counts = batch["num_visual_tokens"].tolist()
            shape = tuple(batch["visual_token_map"].shape)
            print(f"samples {batch['sample_index'].tolist()}: {counts} tokens, maps {shape}")
        print(loader.stats().report())


if __name__ == "__main__":
    main()
