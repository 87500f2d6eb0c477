"""Measure decoding of large JPEG files to their canvas: at a fraction of their size, and fully.

    python benchmarks/bench_decoding.py FOLDER --canvas 512

FOLDER holds photographs, by default those in the folder that SUBTOK_TEST_DATA names (or shared/data
beside the checkout), else those that come with scikit-image. A few of them are enlarged and written
again as JPEG of quality 90, which is what phones and cameras give. Times are the least of some
runs, ratios of the same run.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from figures import Table, add_json_option, markdown, write_json
from numpy.typing import NDArray
from PIL import Image

from subtok_data.images import Canvas, open_image


def sources(folder: Path | None, count: int) -> list[Image.Image]:
    """Open some photos of a folder, or else those of scikit-image."""
    if folder is None:
        named = os.environ.get("SUBTOK_TEST_DATA")
        data_folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
        folder = data_folder / "photos" / "open"
    if not folder.exists():
        from skimage import data

        names = ("astronaut", "chelsea", "coffee", "rocket")
        return [Image.fromarray(getattr(data, name)()) for name in names[:count]]
    files = sorted(folder.glob("*.jpg"))
    return [to_pillow(file) for file in files[:: max(1, len(files) // count)][:count]]


def to_pillow(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def enlarged(image: Image.Image, megapixels: float) -> bytes:
    factor = (1e6 * megapixels / (image.width * image.height)) ** 0.5
    size = round(factor * image.width), round(factor * image.height)
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def least(stage: Callable[[], NDArray[np.uint8]], runs: int) -> tuple[float, NDArray[np.uint8]]:
    times = []
    for _ in range(runs):
        started = time.process_time()
        result = stage()
        times.append(1000 * (time.process_time() - started))
    return min(times), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--canvas", type=int, default=512, help="longest side, pixels")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1.0, 2.0, 4.2, 12.0, 24.0])
    parser.add_argument("--runs", type=int, default=7, help="the least time of so many counts")
    add_json_option(parser)
    args = parser.parse_args()
    photos = sources(args.folder, args.images)
    columns = ["megapixels", "full, core-ms", "reduced", "ratio", "ratios", "mean difference"]
    table = Table(f"JPEG to a canvas of {args.canvas} pixels", columns, [])
    for megapixels in args.megapixels:
        full, reduced, differences = [], [], []
        for photo in photos:
            content = enlarged(photo, megapixels)
            whole = Canvas(args.canvas, full_decode=True)
            slow, expected = least(lambda: whole.fit(open_image(content)), args.runs)  # noqa: B023
            part = Canvas(args.canvas)
            quick, found = least(lambda: part.fit(open_image(content)), args.runs)  # noqa: B023
            full.append(slow)
            reduced.append(quick)
            differences.append(np.abs(found.astype(int) - expected).mean())
        ratios = [slow / quick for slow, quick in zip(full, reduced, strict=True)]
        table.rows.append(
            [
                f"{megapixels:g}",
                median(full),
                median(reduced),
                median(ratios),
                f"{min(ratios):.1f} to {max(ratios):.1f}",
                f"{np.mean(differences):.2f} (at most {max(differences):.2f})",
            ]
        )
    print(markdown(table))
    write_json(args.json, [table])


if __name__ == "__main__":
    main()
