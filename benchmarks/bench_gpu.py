"""One sitting at a GPU: floors, forwards, canvases, loader, training, waits, memory, the rest.

    subtok bench gpu --json gpu.json                       # all parts, some 25 minutes
    subtok bench gpu --only A,B,C --json abc.json          # some: A-C, D-E and F-I fit 10 minutes
    subtok bench gpu --device cpu --quick                  # all, tiny: do they run?

Weights are the packaged ones or random, photos are made: nothing is downloaded. Device times are
those of events, host times those until a call returned; medians of five. A case that fails is a row
that says why, and a part begins no new case after ``--seconds``: what it left out, it says.

A floors of the machine · B one forward · C canvases and precision · D the loader · E beside
training · F waits and the interpreter lock · G memory and time · H other segmenters and the token
embedding · I tokens of a whole dataset
"""

from __future__ import annotations

import argparse
import os
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Callable

import torch
from figures import Table, add_json_option, markdown, write_json
from gpu_model import canvases, floors, forwards, precision
from gpu_pipeline import (
    beside_training,
    loaders,
    memory_and_time,
    other_segmenters,
    waits,
    whole_dataset,
)
from gpu_timing import Setting

from subtok_data.segment import warm_up

PARTS: dict[str, tuple[Callable[[Setting], list[Table]], float]] = {
    "A": (floors, 30),
    "B": (forwards, 240),
    "C": (lambda setting: [canvases(setting), precision(setting)], 240),
    "D": (loaders, 300),
    "E": (beside_training, 240),
    "F": (waits, 60),
    "G": (memory_and_time, 150),
    "H": (other_segmenters, 150),
    "I": (whole_dataset, 90),
}
"""Function and seconds of each part."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="subtok bench gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="".join(PARTS), help="letters of parts: A,B,C")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu with --quick")
    parser.add_argument("--quick", action="store_true", help="each part in its tiniest form")
    parser.add_argument("--seconds", type=float, help="for each part, instead of its own budget")
    add_json_option(parser)
    args = parser.parse_args()
    letters = [letter for letter in args.only.upper() if letter not in ", "]
    if unknown := [letter for letter in letters if letter not in PARTS]:
        parser.error(f"--only {args.only}: no part {unknown[0]}; there are {', '.join(PARTS)}")
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.exit(
            2,
            "no CUDA device here: run this on a machine with one, or see that it runs at all with "
            "--device cpu --quick\n",
        )
    if device.type != "cuda" and not args.quick:
        parser.error(f"--device {args.device} needs --quick: full cases would take hours")
    gpu = {}
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
        seen = torch.cuda.get_device_properties(device)
        gpu = {"name": seen.name, "memory_gb": seen.total_memory / 2**30}
        gpu["cuda"], gpu["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
        print(gpu)
    warm_up()
    tables: list[Table] = []
    for letter in letters:
        part, seconds = PARTS[letter]
        setting = Setting(device, args.quick, args.seconds or seconds)
        setting.begin()
        began = time.monotonic()
        try:
            found = part(setting)
        except Exception as error:  # the other parts are worth having
            words = f"{type(error).__name__}: {error}"
            found = [Table(f"part {letter} failed", ["error"], [[words.replace("|", "/")]])]
        for table in found:
            table.title = f"{letter}. {table.title}"
            print(f"\n{markdown(table)}", flush=True)
        left = f", {setting.left_out} cases left out" if setting.left_out else ""
        print(f"\n({letter}: {time.monotonic() - began:.0f} s{left})", flush=True)
        tables += found
        write_json(args.json, tables, gpu=gpu)  # after each part: a sitting may end early
    return 1 if any("failed" in table.title for table in tables) else 0


if __name__ == "__main__":
    sys.exit(main())
