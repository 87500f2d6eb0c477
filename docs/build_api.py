"""Write ``docs/api.md`` from the docstrings: run it after a change of a public name.

    python docs/build_api.py

One entry per public name: signature, what it is in one line, and its public methods. The full
description, with shapes, ranges and examples, is the docstring: ``help(SubobjectTokenizer)``.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

HEAD = """\
# API reference

Every public name with its signature and what it is. The docstrings have the rest: parameters with
ranges and units, shapes, what is raised, examples: `help(subtok_data.SubobjectTokenizer)`.
This page is made from them by `python docs/build_api.py`.

All names of the first sections come from `subtok_data` itself.
"""

SECTIONS: dict[str, list[str]] = {
    "Images to tokens": [
        "SubobjectTokenizer",
        "TokenizedImage",
        "EPOCSegmenter",
        "PatchSegmenter",
        "SuperpixelSegmenter",
        "PanopticSegmenter",
        "SAMSegmenter",
        "SAMEdgeSegmenter",
        "EfficientSAMSegmenter",
        "PromptedSegmenter",
        "Prompts",
        "BoundaryModel",
        "watershed_tokens",
    ],
    "Datasets to batches": [
        "SubobjectDataset",
        "SubobjectIterableDataset",
        "PromptColumns",
        "RegionDataset",
        "MixedDataset",
        "ImageFreeDataset",
        "ImageFiles",
        "SubobjectCollator",
        "SubobjectLoader",
        "SubobjectProcessor",
        "BatchPlan",
        "PixelConfig",
        "TextConfig",
        "RegionText",
        "validate_batch",
    ],
    "Inside the model": ["TokenEmbedding", "merge_visual_tokens"],
    "Errors": ["SubtokError", "SampleError", "WorkerCrashError"],
}

DEEPER: dict[str, list[str]] = {
    "Stored tokens": [
        "subtok_data.data.tokenize_dataset",
        "subtok_data.data.TokenizeReport",
        "subtok_data.data.open_images",
        "subtok_data.data.StoredTokens",
        "subtok_data.data.describe_cache",
        "subtok_data.data.compact_cache",
        "subtok_data.data.clear_cache",
        "subtok_data.data.CacheInfo",
    ],
    "Frameworks": [
        "subtok_data.integrations.use_subobject_tokens",
        "subtok_data.integrations.load_subobject_model",
        "subtok_data.integrations.generation_inputs",
        "subtok_data.integrations.SubobjectTrainerMixin",
        "subtok_data.integrations.EpochCallback",
        "subtok_data.integrations.SubobjectDataModule",
        "subtok_data.integrations.to_naflex",
    ],
    "Batches and statistics": [
        "subtok_data.batch.model_inputs",
        "subtok_data.data.PendingBatch",
        "subtok_data.data.LoaderStats",
        "subtok_data.text.pack_batch",
        "subtok_data.text.unpack_batch",
    ],
    "Regions with texts": [
        "subtok_data.data.RegionColumns",
        "subtok_data.data.CocoRegions",
        "subtok_data.data.PanopticRegions",
        "subtok_data.data.VisualGenomeRegions",
        "subtok_data.data.ReferringRegions",
        "subtok_data.data.LargeScaleJitter",
        "subtok_data.data.TextSafeHorizontalFlip",
        "subtok_data.text.region_text_loss",
    ],
    "Batches without images": [
        "subtok_data.imagefree.ImageFreeLoader",
        "subtok_data.imagefree.CategoryWords",
        "subtok_data.nn.nearest_neighbors",
        "subtok_data.nn.smooth_scores",
        "subtok_data.nn.smooth_feature_map",
    ],
    "Features": [
        "subtok_data.nn.FeatureEncoder",
    ],
    "Visualisation": [
        "subtok_data.viz.plot_tokens",
        "subtok_data.viz.plot_thresholds",
        "subtok_data.viz.outline_image",
        "subtok_data.viz.mean_color_image",
        "subtok_data.viz.boundary_image",
    ],
    "Segmenters of your own, mask generation": [
        "subtok_data.segmenters.Segmenter",
        "subtok_data.segmenters.as_segmenter",
        "subtok_data.segmenters.as_prompter",
        "subtok_data.segmenters.GenerationOptions",
        "subtok_data.segmenters.generate_masks",
        "subtok_data.segmenters.PointDecoder",
        "subtok_data.segmenters.SAMPrompter",
        "subtok_data.segmenters.EfficientSAMPrompter",
        "subtok_data.segmenters.Prompter",
    ],
    "Segmentation without torch": [
        "subtok_data.segment.Budget",
        "subtok_data.segment.Partition",
        "subtok_data.segment.Partitioner",
        "subtok_data.segment.as_partitioner",
        "subtok_data.segment.apply_budget",
        "subtok_data.segment.RLEMasks",
        "subtok_data.segment.MaskPartitioner",
        "subtok_data.segment.FillRules",
        "subtok_data.segment.LabelMapPartitioner",
        "subtok_data.segment.PromptedPartitioner",
        "subtok_data.segment.prompt_regions",
        "subtok_data.segment.match_regions",
        "subtok_data.segment.measure",
        "subtok_data.segment.token_shapes",
        "subtok_data.segment.region_adjacency",
    ],
    "Images": [
        "subtok_data.images.to_rgb",
        "subtok_data.images.resize",
        "subtok_data.images.canvas_size",
    ],
    "Kinds of errors": [
        "subtok_data.errors.ConfigError",
        "subtok_data.errors.ImageError",
        "subtok_data.errors.PromptError",
        "subtok_data.errors.StoreError",
        "subtok_data.errors.WeightsError",
    ],
}


def sections() -> dict[str, list[str]]:
    """Sections of full names; a public name that stands in none comes under "More"."""
    import subtok_data

    listed = {name for names in SECTIONS.values() for name in names}
    more = [name for name in subtok_data.__all__ if name not in listed]
    own = {**SECTIONS, "More": more} if more else SECTIONS
    return {
        **{title: [f"subtok_data.{name}" for name in names] for title, names in own.items()},
        **DEEPER,
    }


def signature(value: Any) -> str:
    """Parameters with defaults, without annotations."""
    try:
        found = inspect.signature(value)
    except ValueError:
        return "(…)"
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in found.parameters.items()
        if name not in ("self", "cls")
    ]
    text = str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    text = re.sub(r"<function ([\w.]+) at \w+>", r"\1", text)
    return re.sub(r"<factory>|<object object at \w+>|<class '([\w.]+)'>", r"\1…", text)


def summary(value: Any) -> str:
    """First sentence of a docstring, with reST roles as plain code."""
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?(?:[\w]+\.)*([\w.]+)`", r"`\1`", text)
    return text.replace("``", "`")


def members(cls: type) -> list[str]:
    """One line for each public method and property of a class, and of its bases here."""
    own = [vars(base) for base in cls.__mro__ if base.__module__.startswith("subtok_data.")]
    lines: list[str] = []
    for name, value in {name: found[name] for found in reversed(own) for name in found}.items():
        if name.startswith("_") and name != "__call__":
            continue
        if isinstance(value, property):
            lines.append(f"- `.{name}`: {summary(value.fget)}")
        elif isinstance(value, classmethod | staticmethod):
            lines.append(f"- `{cls.__name__}.{name}{signature(value.__func__)}`: {summary(value)}")
        elif inspect.isfunction(value) and inspect.getdoc(value):
            shown = "" if name == "__call__" else f".{name}"
            lines.append(f"- `{shown or 'tokens ='}{signature(value)}`: {summary(value)}")
    return [line.replace("`tokens =(", "`(") for line in lines]


def entry(full_name: str) -> str:
    """Heading, signature, one line, and members of a class."""
    module, name = full_name.rsplit(".", 1)
    value = getattr(importlib.import_module(module), name)
    title = name if module == "subtok_data" else full_name
    parts = [f"### `{title}`"]
    is_error = inspect.isclass(value) and issubclass(value, Exception)
    is_protocol = getattr(value, "_is_protocol", False)
    if not is_error and not is_protocol:
        parts.append(f"```text\n{_wrapped(name + signature(value))}\n```")
    parts.append(summary(value))
    if inspect.isclass(value) and not is_error:
        parts.append("\n".join(members(value)))
    return "\n\n".join(part for part in parts if part)


def _wrapped(call: str, width: int = 96) -> str:
    """Break a long signature after commas."""
    lines, indent = [""], " " * 4
    for piece in call.split(", "):
        piece = piece if lines == [""] else f", {piece}"
        if len(lines[-1]) + len(piece) > width:
            lines[-1] += ","
            lines.append(indent + piece.removeprefix(", "))
        else:
            lines[-1] += piece
    return "\n".join(lines)


def render() -> str:
    """Return the text of the page."""
    pages = [HEAD]
    for title, names in sections().items():
        pages.append(f"## {title}\n")
        pages += [entry(name) + "\n" for name in names]
    return "\n".join(pages)


if __name__ == "__main__":
    Path(__file__).with_name("api.md").write_text(render(), encoding="utf-8")
