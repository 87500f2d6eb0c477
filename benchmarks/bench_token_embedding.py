"""Memory and time of token embedding: scatter from the token map against dense masks.

    python benchmarks/bench_token_embedding.py
    python benchmarks/bench_token_embedding.py --side 384 --tokens 100 --json

Every method runs forward and backward in a process of its own, on the same features and maps;
memory is the peak of the process over what it held before. ``dense`` does what the original code of
EPOC does (arXiv 2402.14327): one mask per token, boxes from coordinate volumes, features enlarged
to the image, RoIAlign of both on 32 x 32 bins.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from figures import Table, add_json_option, write_json
from torchvision.ops import roi_align

from subtok_data.nn import pool_tokens, roi_pool_tokens, shape_codes, token_cells

METHODS = ("area", "bilinear", "roi", "dense")
BINS = 32


def make_map(side: int, tokens: int, seed: int) -> torch.Tensor:
    """Connected tokens of uneven size: cells of random sites."""
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(seed)
    sites = rng.uniform(0, side, (tokens, 2))
    y, x = np.mgrid[:side, :side] + 0.5
    nearest = cKDTree(sites).query(np.stack([y, x], -1).reshape(-1, 2))[1]
    return torch.from_numpy(np.unique(nearest, return_inverse=True)[1].reshape(side, side))


def dense_path(features: torch.Tensor, maps: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Content of all tokens by dense masks, as the original computes it."""
    side = maps.shape[-1]
    most = max(counts)
    masks = torch.stack([m[None] == torch.arange(most)[:, None, None] for m in maps])
    y = torch.arange(side)[:, None].expand(side, side)
    x = torch.arange(side)[None].expand(side, side)
    large = torch.tensor(side)
    boxes = torch.stack(
        [
            torch.where(masks, x, large).flatten(2).amin(2),
            torch.where(masks, y, large).flatten(2).amin(2),
            torch.where(masks, x, -1).flatten(2).amax(2),
            torch.where(masks, y, -1).flatten(2).amax(2),
        ],
        dim=-1,
    ).clamp(0, side - 1)
    full = F.interpolate(features, size=(side, side), mode="bilinear", align_corners=False)
    per_image = [box.float() for box in boxes]
    crops = roi_align(full, per_image, (BINS, BINS), sampling_ratio=1, aligned=False)
    flat = masks.flatten(0, 1).float()[:, None]
    own = torch.cat([torch.arange(len(flat))[:, None].float(), boxes.flatten(0, 1).float()], 1)
    bins = (roi_align(flat, own, (BINS, BINS), aligned=True) > 0).float()
    content = (crops * bins).sum((2, 3)) / bins.sum((2, 3)).clamp_min(1)
    real = torch.arange(most) < torch.tensor(counts)[:, None]
    return content[real.flatten()]


def content_of(
    method: str, features: torch.Tensor, maps: torch.Tensor, counts: list[int], stride: int
) -> torch.Tensor:
    """Token contents by one of the methods, shape codes included."""
    side = maps.shape[-1]
    if method == "dense":
        return dense_path(features, maps, counts)
    if method == "roi":
        return roi_pool_tokens(features, maps, counts, BINS)[0]
    shape_codes(maps, counts, BINS)
    size = (features.shape[2], features.shape[3])
    cells = token_cells(maps, counts, size, pixel_size=(side, side), stride=stride, sampling=method)
    return pool_tokens(features, cells)


def measure(method: str, options: argparse.Namespace, results: Any) -> None:
    """Run one method; put median milliseconds, megabytes and the contents in the queue."""
    torch.set_num_threads(options.threads)
    maps = torch.stack(
        [make_map(options.side, options.tokens, seed) for seed in range(options.images)]
    )
    counts = [int(m.max()) + 1 for m in maps]
    cells = options.side // options.stride
    torch.manual_seed(0)
    features = torch.randn(options.images, options.channels, cells, cells, requires_grad=True)
    small = torch.randn(1, 4, 8, 8, requires_grad=True)
    content_of(method, small, torch.zeros(1, 32, 32, dtype=torch.int64), [1], 4).sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times: list[float] = []
    for _ in range(options.rounds):
        features.grad = None
        start = time.perf_counter()
        content = content_of(method, features, maps, counts, options.stride)
        content.sum().backward()
        times.append(1000 * (time.perf_counter() - start))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results.put(
        {
            "method": method,
            "ms": statistics.median(times),
            "spread": [min(times), max(times)],
            "MB": (after - before) / 1024,
            "content": content.detach().numpy(),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--channels", type=int, default=384, help="384: DINOv2-small")
    parser.add_argument("--stride", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    add_json_option(parser)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found: list[dict[str, Any]] = []
    for method in options.methods:
        results = context.SimpleQueue()
        process = context.Process(target=measure, args=(method, options, results))
        process.start()
        found.append(results.get())
        process.join()
    reference = next((r["content"] for r in found if r["method"] == "bilinear"), None)
    for result in found:
        content = result.pop("content")
        if reference is not None:
            # Against the exact mean of the enlarged features, in units of their spread.
            result["error"] = float(np.sqrt(((content - reference) ** 2).mean()) / reference.std())
    title = f"Token embedding, forward and backward, {options.side}², {options.tokens} tokens"
    rows = [[r["method"], r["ms"], r["MB"]] for r in found]
    write_json(options.json, [Table(title, ["", "ms", "peak MB"], rows)], results=found)
    print(
        f"{options.images} image(s) of {options.side} px, {options.tokens} tokens, features "
        f"{options.channels} x {options.side // options.stride}², {options.threads} thread(s)"
    )
    print(f"{'method':10s} {'forward + backward':>20s} {'peak memory':>12s} {'deviation':>10s}")
    for r in found:
        error = f"{100 * r['error']:.1f} %" if "error" in r else "-"
        print(f"{r['method']:10s} {r['ms']:17.0f} ms {r['MB']:9.0f} MB {error:>10s}")


if __name__ == "__main__":
    main()
