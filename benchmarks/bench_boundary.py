"""Ways to run the boundary model on a CPU: time per image, start-up, and what they do to the maps.

    python benchmarks/bench_boundary.py [--threads 1] [--side 512] [--compile]

Every way runs in the same process and in turn, so that other load on the machine meets all of them;
the time is the best of the rounds. The networks are the packaged one, and, with random weights,
EfficientNet-Lite0 with its decoder and SegFormer-b0 with one channel.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from figures import Table, add_json_option, write_json
from skimage import data as bundled

from subtok_data.boundary import BoundaryModel, load_network
from subtok_data.images import resize


def photos(side: int) -> list[np.ndarray]:
    sources = [bundled.astronaut(), bundled.coffee(), bundled.chelsea(), bundled.rocket()]
    return [resize(photo, (side, side)) for photo in sources]


def networks() -> dict[str, Callable[[], torch.nn.Module]]:
    def b0() -> torch.nn.Module:
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        torch.manual_seed(0)
        return SegformerForSemanticSegmentation(SegformerConfig(num_labels=1))

    return {
        "packaged": lambda: load_network(None).module,
        "segformer-b0": b0,
    }


def ways(make: Callable[[], torch.nn.Module], with_compile: bool) -> dict[str, BoundaryModel]:
    found = {
        "float32": BoundaryModel(make(), dtype="float32"),
        "float32, channels last": BoundaryModel(
            make().to(memory_format=torch.channels_last), dtype="float32"
        ),
        "bfloat16": BoundaryModel(make(), dtype="bfloat16"),
        "bfloat16, channels last": BoundaryModel(
            make().to(memory_format=torch.channels_last), dtype="bfloat16"
        ),
    }
    if with_compile:
        found["float32, compiled"] = BoundaryModel(make(), dtype="float32", compile=True)
        found["bfloat16, compiled"] = BoundaryModel(make(), dtype="bfloat16", compile=True)
    return found


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(name: str, models: dict[str, BoundaryModel], images: list, rounds: int) -> list[dict]:
    first = {way: seconds(lambda m=model: m.predict(images)) for way, model in models.items()}
    # Compiled code for one image alone is another shape: first calls are no measurement.
    for model in models.values():
        model.predict(images[:1])
    single = dict.fromkeys(models, float("inf"))
    batch = dict.fromkeys(models, float("inf"))
    for _ in range(rounds):
        for way, model in models.items():
            batch[way] = min(batch[way], seconds(lambda m=model: m.predict(images)) / len(images))
            single[way] = min(single[way], seconds(lambda m=model: m.predict(images[:1])))
    exact = np.stack(models["float32"].predict(images)).astype(int)
    rows = []
    for way, model in models.items():
        together = np.stack(model.predict(images))
        alone = np.stack([model.predict([image])[0] for image in images])
        rows.append(
            {
                "network": name,
                "way": way,
                "batch_ms": 1000 * batch[way],
                "speedup": batch["float32"] / batch[way],
                "single_ms": 1000 * single[way],
                "first_call_s": first[way],
                "largest_difference_to_float32": int(np.abs(together - exact).max()),
                "mean_difference_to_float32": float(np.abs(together - exact).mean()),
                "largest_difference_to_alone": int(np.abs(together.astype(int) - alone).max()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--side", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="the best of so many rounds counts")
    parser.add_argument("--compile", action="store_true", help="also torch.compile (minutes)")
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = photos(options.side)
    rows = []
    for name, make in networks().items():
        rows += measure(name, ways(make, options.compile), images, options.rounds)
    columns = ["", "batch, ms an image", "times faster", "alone, ms", "largest difference"]
    keys = ("batch_ms", "speedup", "single_ms", "largest_difference_to_float32")
    found = [[f"{row['network']}, {row['way']}", *(row[key] for key in keys)] for row in rows]
    title = f"Boundary model, {options.side}², {options.threads} thread(s)"
    write_json(options.json, [Table(title, columns, found)], rows=rows)
    print(f"{options.side}^2, {options.threads} thread(s), torch {torch.__version__}")
    head = (
        "network",
        "way",
        "ms",
        "speedup",
        "alone ms",
        "first s",
        "max diff",
        "mean diff",
        "mates",
    )
    print("{:14} {:24} {:>6} {:>8} {:>9} {:>8} {:>9} {:>10} {:>6}".format(*head))
    for row in rows:
        print(
            "{:14} {:24} {:6.0f} {:7.2f}x {:9.0f} {:8.1f} {:9d} {:10.3f} {:6d}".format(
                *row.values()
            )
        )


if __name__ == "__main__":
    main()
