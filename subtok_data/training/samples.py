"""Labelled images, and the check of all of them before a run.

A source is a map-style dataset: it reads one image and builds its label when asked, and keeps
nothing, so that its size does not matter. `check_sources` looks at every sample once, reports those
that cannot be trained on, and keeps the rest in memory where they fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from subtok_data.errors import ConfigError, SubtokError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["BoundarySource", "CheckedSamples", "Sample", "check_sources"]


class Sample(NamedTuple):
    """One labelled image.

    Attributes
    ----------
    image : ndarray
        RGB (H, W, 3) uint8.
    strength : ndarray
        (H, W) uint8, 255 = certainly a boundary.
    thin : bool
        True for thin edge strength, which is widened after scaling; False for finished lines.
    """

    image: NDArray[np.uint8]
    strength: NDArray[np.uint8]
    thin: bool


class BoundarySource(Protocol):
    """A map-style dataset of labelled images."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Name where a sample comes from, for messages."""
        ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True)
class CheckedSamples:
    """Samples that passed the check, in memory where they fit.

    Attributes
    ----------
    problems : tuple of str
        One message for each sample left out.
    """

    sources: tuple[BoundarySource, ...]
    places: tuple[tuple[int, int], ...]
    kept: dict[int, Sample]
    problems: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        """Name where a sample comes from."""
        source, inner = self.places[index]
        return self.sources[source].name(inner)

    def __getitem__(self, index: int) -> Sample:
        if index in self.kept:
            return self.kept[index]
        source, inner = self.places[index]
        return self.sources[source][inner]


def check_sources(
    sources: Sequence[BoundarySource], *, cache_bytes: int = 2 << 30, progress: bool = False
) -> CheckedSamples:
    """Read every sample once and leave out those that cannot be trained on.

    Parameters
    ----------
    sources : sequence of BoundarySource
        Readers.
    cache_bytes : int
        Samples are kept in memory up to this size; 0 keeps none.
    progress : bool
        Show a bar.

    Returns
    -------
    CheckedSamples
        With one message a bad sample: unreadable, sizes that differ, or no boundary at all.

    Raises
    ------
    ConfigError
        Nothing is left.
    """
    places = [(s, i) for s, source in enumerate(sources) for i in range(len(source))]
    good: list[tuple[int, int]] = []
    kept: dict[int, Sample] = {}
    problems: list[str] = []
    used = 0
    for place in tqdm(places, desc="checking labels", unit="image", disable=not progress):
        source = sources[place[0]]
        try:
            sample = source[place[1]]
        except (SubtokError, OSError, ValueError, KeyError) as error:
            message, where = str(error), source.name(place[1])
            problems.append(message if message.startswith(where) else f"{where}: {message}")
            continue
        if not sample.strength.any():
            problems.append(f"{source.name(place[1])}: the label is empty")
            continue
        size = sample.image.nbytes + sample.strength.nbytes
        if used + size <= cache_bytes:
            kept[len(good)] = sample
            used += size
        good.append(place)
    if not good:
        reasons = "\n  ".join(problems[:5])
        raise ConfigError(f"none of {len(places)} samples can be trained on:\n  {reasons}")
    return CheckedSamples(tuple(sources), tuple(good), kept, tuple(problems))
