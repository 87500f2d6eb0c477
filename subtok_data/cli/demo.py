"""``subtok demo``: pictures and timings of real photos."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from subtok_data.cli.options import Commands, add_command, add_tokenizer_options, make_tokenizer
from subtok_data.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from subtok_data.tokenized_image import TokenizedImage
    from subtok_data.tokenizer import SubobjectTokenizer

__all__ = ["add_parser"]

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
"""Photos that come with scikit-image itself: no download."""

_RUNS = 3
_EXAMPLES = """\
  subtok demo                                   four photos that come with scikit-image
  subtok demo holiday.jpg --num-tokens 60
  subtok demo photos/ --strength 0.6 --out pictures/
  subtok demo --segmenter sam --segmenter-model facebook/sam-vit-base --points-per-side 16
  subtok demo --json > timings.json
  subtok demo --serve                           a page to try it on photos of your own
"""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands, "demo", "Cut photos into tokens, draw them, and print timings.", _EXAMPLES
    )
    parser.add_argument(
        "photos",
        metavar="PHOTO",
        nargs="*",
        help="images, or a folder of them (default: four photos that come with scikit-image)",
    )
    parser.add_argument(
        "--out",
        default="subtok-demo",
        metavar="DIR",
        help="folder of the pictures (default: subtok-demo)",
    )
    parser.add_argument(
        "--format", choices=("png", "jpg"), default="png", help="of the pictures (default: png)"
    )
    parser.add_argument(
        "--thresholds",
        type=float,
        nargs="*",
        default=[0.05, 0.1, 0.2, 0.4],
        metavar="T",
        help="to compare on one page (default: 0.05 0.1 0.2 0.4)",
    )
    parser.add_argument(
        "--strengths",
        type=float,
        nargs="*",
        default=[0.2, 0.4, 0.6, 0.8],
        metavar="S",
        help="to compare on the same page (default: 0.2 0.4 0.6 0.8)",
    )
    parser.add_argument(
        "--counts",
        type=int,
        nargs="*",
        default=[16, 60, 150, 400],
        metavar="N",
        help="exact numbers of tokens to compare on the same page (default: 16 60 150 400)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--serve",
        action="store_true",
        help="open a page on this machine instead: controls, boundary map, tokens under a click, "
        "boxes as prompts (pip install 'subtok-data[demo]')",
    )
    parser.add_argument(
        "--port", type=int, default=7860, metavar="N", help="of that page (default: 7860)"
    )
    add_tokenizer_options(parser)
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class _Timing:
    """One photo: sizes as (height, width), coverage as a share, milliseconds per stage."""

    image: str
    source_size: tuple[int, int]
    size: tuple[int, int]
    tokens: int
    coverage: float
    decode_ms: float
    infer_ms: float
    segment_ms: float
    pictures: list[str]

    def cells(self) -> list[str]:
        """As strings, in the order of the table."""
        return [
            self.image,
            f"{self.source_size[1]}×{self.source_size[0]}",
            f"{self.size[1]}×{self.size[0]}",
            str(self.tokens),
            f"{self.coverage:.1%}",
            f"{self.decode_ms:.1f}",
            f"{self.infer_ms:.1f}",
            f"{self.segment_ms:.1f}",
        ]


_HEADER = ["image", "source", "cut at", "tokens", "coverage", "decode ms", "infer ms", "segment ms"]


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 1 if an image failed."""
    from subtok_data.errors import ImageError
    from subtok_data.segment import warm_up

    sources = list(_sources(args.photos))
    tokenizer = make_tokenizer(args)
    if args.serve:
        return _serve(tokenizer, sources[0][1], args.port)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    warm_up()
    seconds = time.perf_counter() - started
    if seconds > 2:
        say(f"compiled the kernels in {seconds:.0f} s; the next start reads them from the disk")
    timings: list[_Timing] = []
    failed: list[dict[str, str]] = []
    for name, value in sources:
        try:
            timing, tokenized = _measure(name, value, tokenizer)
        except ImageError as error:
            failed.append({"image": name, "reason": str(error)})
            say(f"subtok: {name}: {error}")
            continue
        timing.pictures.extend(_draw(args, name, tokenized, out))
        timings.append(timing)
    if args.json:
        images = [asdict(timing) for timing in timings]
        device = str(tokenizer.device)
        print_json({"device": device, "images": images, "failed": failed})
    elif timings:
        print_table(_HEADER, [timing.cells() for timing in timings])
        pictures = sum(len(timing.pictures) for timing in timings)
        print(f"\n{pictures} pictures in {out}/   (model on {tokenizer.device})")
    return 1 if failed else 0


def _serve(tokenizer: SubobjectTokenizer, photo: Any, port: int) -> int:
    from subtok_data.cli.serve import serve
    from subtok_data.errors import ConfigError

    try:
        serve(tokenizer, photo, port)
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ConfigError(str(error)) from error
    return 0


def _sources(paths: list[str]) -> Iterator[tuple[str, Any]]:
    if paths:
        from subtok_data.data import ImageFiles

        files = ImageFiles(paths[0] if len(paths) == 1 else paths)
        for row in map(files.__getitem__, range(len(files))):
            yield row["path"], row["image"]
        return
    from skimage import data

    for name in PHOTOS:
        yield name, getattr(data, name)()


def _measure(
    name: str, value: Any, tokenizer: SubobjectTokenizer
) -> tuple[_Timing, TokenizedImage]:
    """Cut an image once to warm up and to draw, then stage by stage with a clock."""
    from subtok_data.images import image_size, open_image
    from subtok_data.segment import segment_image

    tokenized = tokenizer(value)
    size = image_size(tokenized.image)
    segmenter, task = tokenizer.segmenter, tokenizer.segment_task()
    image, decode_ms = _timed(lambda: tokenizer.canvas.fit(open_image(value)))
    evidence, infer_ms = _timed(lambda: segmenter.infer([image], [size])[0])
    _, segment_ms = _timed(lambda: segment_image(task, evidence, size, image))
    timing = _Timing(
        image=name,
        source_size=tokenized.source_size,
        size=size,
        tokens=tokenized.num_tokens,
        coverage=float((tokenized.token_map >= 0).mean()),
        decode_ms=round(decode_ms, 2),
        infer_ms=round(infer_ms, 2),
        segment_ms=round(segment_ms, 2),
        pictures=[],
    )
    return timing, tokenized


def _timed(stage: Callable[[], Any]) -> tuple[Any, float]:
    """Result and median milliseconds of a few runs."""
    milliseconds: list[float] = []
    result = None
    for _ in range(_RUNS):
        started = time.perf_counter()
        result = stage()
        milliseconds.append(1000 * (time.perf_counter() - started))
    return result, median(milliseconds)


def _draw(
    args: argparse.Namespace, name: str, tokenized: TokenizedImage, out: Path
) -> Iterator[str]:
    from subtok_data.viz import plot_thresholds, plot_tokens

    stem = Path(name).with_suffix("").as_posix().replace("/", "-")
    title = Path(name).stem
    pages = {stem: plot_tokens(tokenized, title=title)}
    settings = {
        "thresholds": args.thresholds,
        "strengths": args.strengths,
        "num_tokens": args.counts,
    }
    if tokenized.boundary_map is not None and any(settings.values()):
        pages[f"{stem}-compare"] = plot_thresholds(tokenized, **settings, title=title)
    for picture, page in pages.items():
        file = out / f"{picture}.{args.format}"
        page.savefig(file, dpi=200 if args.format == "png" else 110)
        yield str(file)
