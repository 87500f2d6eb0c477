"""SA-1B: a JSON file for each image, with overlapping masks and their quality."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from subtok_data.errors import ConfigError
from subtok_data.segment import RLEMasks, segmentation_runs

__all__ = ["read_sa1b"]


def read_sa1b(path: str | Path) -> RLEMasks:
    """Read the masks of one image.

    Parameters
    ----------
    path : path
        JSON file with ``image`` (``height``, ``width``) and ``annotations`` (``segmentation``,
        ``predicted_iou``, ``stability_score``).

    Returns
    -------
    RLEMasks
        Scored by predicted IoU, with the field ``stability`` (float32); 1 where the file does not
        say.

    Raises
    ------
    ConfigError
        It is no such file.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        size = (int(data["image"]["height"]), int(data["image"]["width"]))
        entries = data["annotations"]
        return RLEMasks.from_runs(
            [segmentation_runs(one["segmentation"], size) for one in entries],
            size,
            [float(one.get("predicted_iou", 1.0)) for one in entries],
            {
                "stability": np.array(
                    [float(one.get("stability_score", 1.0)) for one in entries], np.float32
                )
            },
        )
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not an SA-1B annotation: {error}") from error
