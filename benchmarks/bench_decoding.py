"""Measure decoding of large JPEG files to their canvas: at a fraction of their size, and fully.

python benchmarks/bench_decoding.py FOLDER --canvas 512

FOLDER holds photographs; a few of them are enlarged and written again as JPEG of quality 90, which
is what phones and cameras give. Times are the least of some runs, ratios of the same run.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from subtok_data.images import Canvas, open_image

RUNS = 7


def enlarged(path: Path, megapixels: float) -> bytes:
    buffer = io.BytesIO()
    with Image.open(path) as image:
        factor = (1e6 * megapixels / (image.width * image.height)) ** 0.5
        size = round(factor * image.width), round(factor * image.height)
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def least(stage: Callable[[], NDArray[np.uint8]]) -> tuple[float, NDArray[np.uint8]]:
    times = []
    for _ in range(RUNS):
        started = time.process_time()
        result = stage()
        times.append(1000 * (time.process_time() - started))
    return min(times), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--canvas", type=int, default=512, help="longest side, pixels")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1.0, 2.0, 4.2, 12.0, 24.0])
    args = parser.parse_args()
    files = sorted(args.folder.glob("*.jpg"))
    files = files[:: max(1, len(files) // args.images)][: args.images]
    print(
        "| megapixels | full, ms of one core | reduced | ratio | least and most | mean difference |"
    )
    print("|---|---|---|---|---|---|")
    for megapixels in args.megapixels:
        full, reduced, differences = [], [], []
        for file in files:
            content = enlarged(file, megapixels)
            whole = Canvas(args.canvas, full_decode=True)
            slow, expected = least(lambda: whole.fit(open_image(content)))  # noqa: B023
            quick, found = least(lambda: Canvas(args.canvas).fit(open_image(content)))  # noqa: B023
            full.append(slow)
            reduced.append(quick)
            differences.append(np.abs(found.astype(int) - expected).mean())
        ratios = [slow / quick for slow, quick in zip(full, reduced, strict=True)]
        print(
            f"| {megapixels:g} | {median(full):.0f} | {median(reduced):.0f} | {median(ratios):.1f} "
            f"| {min(ratios):.1f} to {max(ratios):.1f} "
            f"| {np.mean(differences):.2f} (at most {max(differences):.2f}) |"
        )


if __name__ == "__main__":
    main()
