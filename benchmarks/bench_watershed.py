"""Time of the watershed kernel against scikit-image, OpenCV and the procedure of the paper's code.

    python benchmarks/bench_watershed.py --plot docs/images/watershed_scaling.png

The maps are those of the packaged boundary model on real photos: the ones in the folder that
SUBTOK_TEST_DATA names (or shared/data beside the checkout), else the photos that come with
scikit-image. All contenders run on one core, in one process, one after the other on each map, round
after round. Times are of the processor (all contenders have one thread), and medians, so that other
load on the machine meets all alike; it still costs them cache.

The figures are in docs/watershed.md. OpenCV and Higra take part where they are installed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from figures import Table, add_json_option, write_json
from numpy.typing import NDArray
from skimage.measure import label
from skimage.segmentation import watershed

from subtok_data.boundary import BoundaryModel
from subtok_data.images import resize, to_rgb
from subtok_data.segment import Budget, SegmentTask, WatershedPartitioner, segment_image, warm_up
from subtok_data.segment.watershed.flood import flood_from
from subtok_data.segment.watershed.seeds import threshold_seeds

try:
    import cv2
except ImportError:
    cv2 = None
try:
    import higra
except ImportError:
    higra = None

Levels = NDArray[np.uint8]
Call = Callable[[], object]


def photos(count: int, side: int) -> list[NDArray[np.uint8]]:
    """Real photos, resized to squares."""
    named = os.environ.get("SUBTOK_TEST_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    files = sorted((folder / "photos" / "open").glob("*.jpg"))
    if files:
        sources = [to_rgb(file) for file in files[:: max(len(files) // count, 1)]]
    else:
        from skimage import data

        names = ("astronaut", "chelsea", "coffee", "rocket", "retina", "immunohistochemistry")
        sources = [getattr(data, name)() for name in names]
    return [resize(photo, (side, side)) for photo in sources[:count]]


def original_procedure(levels: Levels, threshold: float) -> NDArray[np.bool_]:
    """What the paper's code does: float watershed, one dense mask per label, sorted by area."""
    probabilities = levels.astype(np.float32) / 255
    low = probabilities < threshold
    if cv2 is None:
        markers = label(low, connectivity=1)
    else:
        markers = cv2.connectedComponents(low.astype(np.uint8), connectivity=4)[1]
    labels = watershed(probabilities, markers)
    masks = [labels == index for index in range(1, int(labels.max()) + 1)]
    areas = [mask.sum() for mask in masks]
    return np.stack([masks[i] for i in np.argsort(areas)[::-1]])


def crack_graph(levels: Levels) -> tuple[Any, NDArray[np.float64]]:
    """Higra's graph of a map, and the cracks between its pixels."""
    graph = higra.get_4_adjacency_graph(levels.shape)
    heights = levels.astype(np.float64)
    return graph, higra.weight_graph(graph, heights, higra.WeightFunction.max)


def seeded_by_higra(levels: Levels, markers: NDArray[np.signedinteger]) -> object:
    graph, cracks = crack_graph(levels)
    return higra.labelisation_seeded_watershed(graph, cracks, markers.ravel())


def counted_by_higra(levels: Levels, num_tokens: int) -> object:
    """Exact number by Higra: watershed hierarchy by dynamics, cut."""
    graph, cracks = crack_graph(levels)
    tree, altitudes = higra.watershed_hierarchy_by_dynamics(graph, cracks)
    return higra.labelisation_horizontal_cut_from_num_regions(tree, altitudes, num_tokens)


def contenders(levels: Levels, threshold: float) -> dict[str, Call]:
    """Name and call of each; the plain watersheds get their seeds for nothing."""
    task = SegmentTask(WatershedPartitioner(threshold))
    evidence = {"boundary_map": levels}
    markers = label(levels / 255 < threshold, connectivity=1)
    floats = levels / 255
    calls: dict[str, Call] = {
        "subtok_data: seeds, flood, order, geometry": lambda: segment_image(
            task, evidence, levels.shape
        ),
        "scikit-image watershed, uint8": lambda: watershed(levels, markers),
        "scikit-image watershed, float64": lambda: watershed(floats, markers),
        "original procedure": lambda: original_procedure(levels, threshold),
    }
    if cv2 is not None:
        cv2.setNumThreads(1)
        picture = np.repeat(levels[..., None], 3, axis=2)
        calls["cv2.watershed (other rule, leaves ridges)"] = lambda: cv2.watershed(
            picture, markers.astype(np.int32)
        )
    if higra is not None:
        calls["Higra seeded watershed"] = lambda: seeded_by_higra(levels, markers)
    calls["copy: read the map, write a token map"] = lambda: levels.astype(np.int16)
    return calls


def seconds(call: Call) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def compare(maps: list[Levels], threshold: float, rounds: int) -> dict[str, float]:
    """Median milliseconds of each contender over maps and rounds, interleaved."""
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for levels in maps:
            for name, call in contenders(levels, threshold).items():
                times.setdefault(name, []).append(seconds(call))
    return {name: 1e3 * float(np.median(values)) for name, values in times.items()}


def tie_share(maps: list[Levels], threshold: float) -> float:
    """Largest share of a map's pixels that plain scikit-image gives to another token."""
    worst = 0.0
    for levels in maps:
        seeds = threshold_seeds(levels, threshold)
        plain = watershed(levels, seeds.paint(levels.shape) + 1)
        worst = max(worst, float(np.mean(plain - 1 != flood_from(levels, seeds)[0])))
    return worst


def main_table(args: argparse.Namespace) -> list[Table]:
    """Compare with other floods, by side and threshold."""
    tables: list[Table] = []
    for side in [side for side in args.sides if side >= 768] or args.sides[-1:]:
        maps = BoundaryModel.from_pretrained().predict(photos(args.photos, side))
        for threshold in args.thresholds:
            counts = [threshold_seeds(levels, threshold).count for levels in maps]
            found = compare(maps, threshold, args.rounds)
            ours = next(iter(found.values()))
            print(
                f"\n{side} x {side}, threshold {threshold}, {len(maps)} photos, "
                f"{min(counts)} to {max(counts)} tokens (median {np.median(counts):.0f})"
            )
            for name, value in found.items():
                print(f"  {name:45s} {value:9.2f} ms {value / ours:8.2f} x")
            title = (
                f"Floods of {side}², threshold {threshold}, median {np.median(counts):.0f} tokens"
            )
            rows = [[name, value, value / ours] for name, value in found.items()]
            tables.append(Table(title, ["", "ms", "times subtok_data"], rows))
            share = tie_share([m for m, n in zip(maps, counts, strict=True) if n], threshold)
            print(f"  pixels that scikit-image's ties give to another token: at most {share:.3%}")
    return tables


CONTROLS = {
    "threshold=0.1": SegmentTask(WatershedPartitioner(0.1)),
    "  max_tokens=64, min_area=64": SegmentTask(
        WatershedPartitioner(0.1), Budget(max_tokens=64, min_area=64)
    ),
    "num_tokens=60": SegmentTask(WatershedPartitioner(), Budget(num_tokens=60)),
    "strength=0.3": SegmentTask(WatershedPartitioner(), Budget(strength=0.3)),
}


def controls(args: argparse.Namespace) -> Table:
    """Every control of granularity, against the threshold in the same run."""
    columns: dict[str, list[float]] = {}
    for side in args.sides:
        maps = BoundaryModel.from_pretrained().predict(photos(args.photos, side))
        times: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            for levels in maps:
                evidence = {"boundary_map": levels}
                for name, task in CONTROLS.items():
                    call = partial(segment_image, task, evidence, levels.shape)
                    times.setdefault(name, []).append(seconds(call))
        slow = SegmentTask(WatershedPartitioner(backend="skimage"), Budget(num_tokens=60))
        for levels in maps:
            call = partial(segment_image, slow, {"boundary_map": levels}, levels.shape)
            times.setdefault('num_tokens=60, backend="skimage"', []).append(seconds(call))
            if higra is not None:
                call = partial(counted_by_higra, levels, 60)
                times.setdefault("Higra, 60 by dynamics", []).append(seconds(call))
        print(f"\n{side} x {side}, {len(maps)} photos: median ms, times threshold=0.1")
        first = float(np.median(times["threshold=0.1"]))
        for name, values in times.items():
            value = float(np.median(values))
            print(f"  {name:45s} {1e3 * value:9.2f} ms {value / first:8.2f} x")
            columns.setdefault(name.strip(), []).extend((1e3 * value, value / first))
    head = [word for side in args.sides for word in (f"{side}², ms", "times threshold")]
    rows = [[name, *values] for name, values in columns.items()]
    return Table("Controls of the number of tokens", ["", *head], rows)


def ranked_noise(side: int, scale: float) -> Levels:
    """Smooth noise in which each level has the same number of pixels.

    So a threshold floods the same share of the image whatever the size of the hills.
    """
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(np.random.default_rng(0).random((side, side)), scale, mode="wrap")
    ranks = np.argsort(np.argsort(field, axis=None, kind="stable"))
    return (ranks * 256 // field.size).astype(np.uint8).reshape(side, side)


Rows = dict[str, list[tuple[float, float, float]]]


def scaling(args: argparse.Namespace) -> Rows:
    """Rows (pixels, tokens, least nanoseconds per pixel) for more pixels, and for more tokens."""
    photo = photos(1, 4096)[0]
    largest = BoundaryModel.from_pretrained().predict([resize(photo, (1024, 1024))])[0]
    from PIL import Image

    sizes: list[Levels] = []
    for side in [s for s in (256, 512, 1024, 1536, 2048, 3072, 4096) if s <= args.largest]:
        picture = Image.fromarray(largest).resize((side, side), Image.Resampling.BICUBIC)
        sizes.append(np.asarray(picture).copy())
    cases: dict[str, list[tuple[Levels, SegmentTask]]] = {
        f"pixels, {name.strip()}": [(levels, task) for levels in sizes]
        for name, task in CONTROLS.items()
    }
    few = SegmentTask(WatershedPartitioner(0.35))
    cases["tokens"] = [(ranked_noise(1024, scale), few) for scale in (60, 30, 15, 8, 4, 2, 1.2)]
    rows: Rows = {}
    for name, pairs in cases.items():
        rows[name] = []
        for levels, task in pairs:
            call = partial(segment_image, task, {"boundary_map": levels}, levels.shape)
            tokens = call().num_tokens
            least = min(seconds(call) for _ in range(args.rounds))
            rows[name].append((float(levels.size), float(tokens), 1e9 * least / levels.size))
        print(f"\nmore {name}\n{'pixels':>22s} {'tokens':>10s} {'ms':>10s} {'ns per pixel':>14s}")
        for pixels, tokens, ns in rows[name]:
            print(f"{pixels:22,.0f} {tokens:10,.0f} {pixels * ns / 1e6:10.2f} {ns:14.2f}")
    return rows


def plot(rows: Rows, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, values in rows.items():
        pixels, tokens, ns = np.array(values).T
        if name == "tokens":
            right.semilogx(tokens, pixels * ns / 1e6, "o-")
        else:
            left.loglog(pixels / 1e6, pixels * ns / 1e6, "o-", label=name.removeprefix("pixels, "))
    pixels, _, ns = np.array(rows["pixels, threshold=0.1"]).T
    guide = np.median(ns) * pixels / 1e6
    left.loglog(pixels / 1e6, guide, ":", color="gray", label="proportional to pixels")
    left.set(xlabel="megapixels", ylabel="ms", title="One photo's map, 256² to 4096²")
    left.legend(frameon=False, fontsize=8)
    right.set(xlabel="tokens", ylabel="ms", ylim=(0, None), title="1024², the same share flooded")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    print(f"\nplot: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=int, default=10, help="how many photos (default: 10)")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions (default: 5)")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.1, 0.5])
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 768, 1024])
    parser.add_argument("--largest", type=int, default=4096, help="side up to which time grows")
    add_json_option(parser)
    parser.add_argument("--plot", type=Path, help="file for the picture of the growth")
    args = parser.parse_args()
    warm_up()
    if hasattr(os, "sched_setaffinity"):
        # One core for everybody, whichever is ours now.
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    tables = [*main_table(args), controls(args)]
    rows = scaling(args)
    grown = [
        [name.removeprefix("pixels, "), *(f"{ns:.1f}" for _, _, ns in values)]
        for name, values in rows.items()
        if name != "tokens"
    ]
    sides = [f"{round(pixels**0.5)}²" for pixels, _, _ in rows["pixels, threshold=0.1"]]
    tables.append(Table("Nanoseconds per pixel of one photo's map", ["", *sides], grown))
    write_json(args.json, tables)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
