"""Sources of labelled images as the command line names them: ``KIND:FOLDER[,FOLDER…]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from subtok_data.errors import ConfigError
from subtok_data.training.readers import (
    BSDSSource,
    CocoInstanceSource,
    CocoPanopticSource,
    LabelMapSource,
    MaskSource,
    TeacherSource,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from subtok_data.training.sources import BoundarySource

__all__ = ["parse_source"]

_KINDS: dict[str, tuple[Callable[..., BoundarySource], int]] = {
    "bsds": (BSDSSource, 2),
    "panoptic": (CocoPanopticSource, 3),
    "instances": (CocoInstanceSource, 2),
    "masks": (MaskSource, 2),
    "labels": (LabelMapSource, 2),
    "teacher": (TeacherSource, 2),
}
"""What makes a source, and how many places it takes."""
_OPEN_LICENCES = (4, 5, 7)


def parse_source(text: str, *, soft: bool = True) -> BoundarySource:
    """Build a source from ``KIND:FOLDER[,FOLDER…]``, as the command line takes it.

    Parameters
    ----------
    text : str
        ``bsds:ROOT,SPLIT``; ``panoptic:IMAGES,JSON,MAPS``; ``instances:IMAGES,JSON``;
        ``masks:IMAGES,MASKS``; ``labels:IMAGES,LABELS``; ``teacher:IMAGES,MAPS``. A ``+open`` after
        a COCO kind admits photos of open licences only.
    soft : bool
        Which form of label.

    Raises
    ------
    ConfigError
        An unknown kind, or a wrong number of folders.
    """
    kind, _, rest = text.partition(":")
    kind, _, option = kind.partition("+")
    places = [place for place in rest.split(",") if place]
    if kind not in _KINDS:
        raise ConfigError(f"{text!r}: no such kind of data; there are {', '.join(_KINDS)}")
    make, count = _KINDS[kind]
    if len(places) != count:
        raise ConfigError(
            f"{text!r}: {kind} takes {count} places separated by commas, got {len(places)}"
        )
    if option and (option != "open" or kind not in ("panoptic", "instances")):
        raise ConfigError(
            f"{text!r}: '+{option}' is not known; panoptic and instances take '+open'"
        )
    options: dict[str, Any] = {} if make is TeacherSource else {"soft": soft}
    if option:
        options["licences"] = _OPEN_LICENCES
    return make(*places, **options)
