"""Statistics of a loader: how long each stage was busy, who waited, and what to change."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.data.replacement import Replacement
from subtok_data.segment import compile_seconds

__all__ = ["LoaderStats", "StatsRecorder"]

_HISTOGRAM = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1 << 30)


@dataclass(frozen=True)
class LoaderStats:
    """Counts and seconds since the loader was made.

    Attributes
    ----------
    batches, images, tokens : int
        Given to the user.
    elapsed_s : float
        Wall time inside iterations.
    decode_wait_s : float
        Time that inference waited for decoded images.
    infer_s : float
        Time that inference took; where a device works beside the host, that of launching it.
    device_wait_s : float
        Time that the collector waited for a device that works beside the host; 0 without.
    segment_s : float
        Time of segmentation, summed over segment workers.
    finish_s : float
        Time spent padding and putting text together.
    consumer_wait_s : float
        Time that the training loop waited for batches.
    segment_workers : int
        Images segmented at once.
    ready_mean : float
        Mean number of finished batches that waited when one was requested.
    padding_fraction : float
        Share of visual-token places that are padding.
    text_padding_fraction : float
        Share of text places that are padding; 0 without text.
    peak_bytes_in_flight : int
        Most bytes of decoded images held between decoding and delivery.
    tokens_histogram : dict of str to int
        Images by number of tokens.
    short : int
        Images with fewer tokens than ``num_tokens``; after each epoch a warning tells their number.
    replaced : tuple of Replacement
        Samples that were replaced.
    restarts : int
        Segment workers that died and were replaced.
    cache_hits, cache_misses : int
        Images whose tokens were in the cache, and those that were tokenized; 0 without a cache.
    compile_s : float
        Time that this process compiled kernels or read their code from the disk, which happens once
        and is in none of the stages.
    infers_on : str
        Type of the device that infers, such as "cpu" or "cuda".
    """

    batches: int
    images: int
    tokens: int
    elapsed_s: float
    decode_wait_s: float
    infer_s: float
    device_wait_s: float
    segment_s: float
    finish_s: float
    consumer_wait_s: float
    segment_workers: int
    ready_mean: float
    padding_fraction: float
    text_padding_fraction: float
    peak_bytes_in_flight: int
    tokens_histogram: dict[str, int]
    short: int
    replaced: tuple[Replacement, ...]
    restarts: int
    cache_hits: int = 0
    cache_misses: int = 0
    compile_s: float = 0.0
    infers_on: str = "cpu"

    @property
    def images_per_s(self) -> float:
        """Images given per second of iteration, training step included."""
        return self.images / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def bottleneck(self) -> str:
        """What limits: "training step", "decode", "infer", "device", "segment" or "finish"."""
        if not self.batches or self.consumer_wait_s < 0.05 * self.elapsed_s:
            return "training step"
        shares = {
            "decode": self.decode_wait_s,
            "infer": self.infer_s,
            "device": self.device_wait_s,
            "segment": self.segment_s / self.segment_workers,
            "finish": self.finish_s,
        }
        return max(shares, key=lambda name: shares[name])

    def report(self) -> str:
        """Describe in words how busy each stage was, which one limits, and what to change."""
        per_image = 1000 / max(1, self.images)
        lines = [
            f"{self.images} images in {self.elapsed_s:.1f} s: {self.images_per_s:.1f} images/s, "
            f"{self.tokens / max(1, self.images):.1f} tokens per image, "
            f"{self.padding_fraction:.0%} padding",
            f"  waiting for decoded images {self.decode_wait_s * per_image:8.2f} ms per image",
            *self._inference(per_image),
            f"  segmentation               {self.segment_s * per_image:8.2f} ms per image"
            f" (in {self.segment_workers} workers at once)",
            f"  padding                    {self.finish_s * per_image:8.2f} ms per image",
            f"  training waited            {self.consumer_wait_s * per_image:8.2f} ms per image; "
            f"{self.ready_mean:.1f} batches ready on average",
        ]
        if self.compile_s > _WORTH_TELLING_S:
            lines.append(
                f"  kernels were compiled for {self.compile_s:.1f} s, once, and all of these waited"
            )
        if looked_up := self.cache_hits + self.cache_misses:
            lines.append(f"  {self.cache_hits} of {looked_up} images were in the cache")
        if self.short:
            lines.append(f"  {self.short} images have fewer tokens than num_tokens")
        if self.replaced:
            lines.append(f"  {len(self.replaced)} samples replaced; the first: {self.replaced[0]}")
        if self.restarts:
            lines.append(f"  {self.restarts} segment workers died and were replaced")
        return "\n".join([*lines, f"Limited by: {self.bottleneck}. {self._advice}"])

    def _inference(self, per_image: float) -> list[str]:
        if not self.device_wait_s:
            return [f"  inference                  {self.infer_s * per_image:8.2f} ms per image"]
        return [
            f"  launching inference        {self.infer_s * per_image:8.2f} ms per image",
            f"  waiting for the device     {self.device_wait_s * per_image:8.2f} ms per image",
        ]

    @property
    def _advice(self) -> str:
        if self.bottleneck == "infer" and self.infers_on != "cpu":
            return _ADVICE["infer on a device"]
        return _ADVICE[self.bottleneck]


_WORTH_TELLING_S = 1.0
_ADVICE = {
    "training step": "The loader keeps up; nothing to change here.",
    "decode": "Raise num_workers, or store smaller images.",
    "infer": "Use a GPU, a smaller size, or larger batches; or store tokens once with `subtok "
    "tokenize`.",
    "infer on a device": "Give larger batches, so that the host launches less for each image; or "
    "store tokens once with `subtok tokenize`.",
    "device": "Use a smaller size or a smaller model; or store tokens once with `subtok tokenize`.",
    "segment": "Raise segment_workers, or use a smaller size.",
    "finish": "Use a smaller pixel size, or pixels=PixelConfig(dtype='uint8') and normalise on "
    "the device.",
}


@dataclass
class StatsRecorder:
    """Collects what :class:`LoaderStats` tells; all threads write to it.

    ``replaced`` is a log of the ``BatchStages``.
    """

    batches: int = 0
    images: int = 0
    tokens: int = 0
    places: int = 0
    text_tokens: int = 0
    text_places: int = 0
    ready: int = 0
    short: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    bytes_in_flight: int = 0
    peak_bytes: int = 0
    infers_on: str = "cpu"
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    replaced: list[Replacement] = field(default_factory=list[Replacement])
    histogram: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(_HISTOGRAM) - 1, np.int64)
    )
    compiled_before: float = field(default_factory=compile_seconds)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def timed(self, stage: str) -> Generator[None]:
        """Add the time inside to a stage, without that of compiling kernels."""
        started, compiled = time.perf_counter(), compile_seconds(of_thread=True)
        try:
            yield
        finally:
            compiled = compile_seconds(of_thread=True) - compiled
            self.add(stage, time.perf_counter() - started - compiled)

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def hold(self, size: int) -> None:
        """Count bytes of decoded images that came in (negative: went out)."""
        with self._lock:
            self.bytes_in_flight += size
            self.peak_bytes = max(self.peak_bytes, self.bytes_in_flight)

    def count(self, counts: NDArray[np.int64], batch: dict[str, Any], text_tokens: int = 0) -> None:
        """Count a batch when the user gets it, without a look at what may be on a device.

        Parameters
        ----------
        counts : (I,) int64
            Tokens of each image.
        batch : dict
            Only the shapes of its tensors are read.
        text_tokens : int, optional
            Places of ``input_ids`` that are no padding.
        """
        self.batches += 1
        self.images += counts.size
        self.tokens += int(counts.sum())
        mask = batch.get("visual_token_mask")  # absent when packed: then nothing is padded
        self.places += int(counts.sum()) if mask is None else mask.numel()
        if "input_ids" in batch:
            self.text_places += batch["input_ids"].numel()
            self.text_tokens += text_tokens
        self.histogram += np.histogram(counts, _HISTOGRAM)[0]

    def stats(self, *, segment_s: float, segment_workers: int, restarts: int) -> LoaderStats:
        """Sum up."""
        seconds = self.seconds
        names = [
            f"{low}" if high == low + 1 else f"{low}–{high - 1}" if high < 1 << 30 else f"{low}+"
            for low, high in pairwise(_HISTOGRAM)
        ]
        return LoaderStats(
            batches=self.batches,
            images=self.images,
            tokens=self.tokens,
            elapsed_s=seconds.get("elapsed", 0.0),
            decode_wait_s=seconds.get("decode", 0.0),
            infer_s=seconds.get("infer", 0.0),
            device_wait_s=seconds.get("device", 0.0),
            segment_s=segment_s,
            finish_s=seconds.get("finish", 0.0),
            consumer_wait_s=seconds.get("wait", 0.0),
            segment_workers=segment_workers,
            ready_mean=self.ready / self.batches if self.batches else 0.0,
            padding_fraction=1 - self.tokens / self.places if self.places else 0.0,
            text_padding_fraction=1 - self.text_tokens / self.text_places
            if self.text_places
            else 0.0,
            peak_bytes_in_flight=self.peak_bytes,
            tokens_histogram=dict(zip(names, self.histogram.tolist(), strict=True)),
            short=self.short,
            replaced=tuple(self.replaced),
            restarts=restarts,
            cache_hits=self.cache_hits,
            cache_misses=self.cache_misses,
            compile_s=compile_seconds() - self.compiled_before,
            infers_on=self.infers_on,
        )
