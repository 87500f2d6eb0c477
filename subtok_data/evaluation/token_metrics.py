"""Token quality against human segmentations, for token maps of any method.

All figures come from the table of common pixels of tokens and regions, or from distance maps: no
dense masks. They are means over annotators, then over images.

Sources: achievable segmentation accuracy, undersegmentation error and boundary recall as in Stutz
et al., "Superpixels: an evaluation of the state of the art" (2018); covering from Arbeláez et al.
(2011); monosemanticity from EPOC (arXiv 2402.14327, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from skimage.transform import resize as rescale

from subtok_data.errors import ConfigError
from subtok_data.evaluation.datasets import region_lines

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Reference", "TokenScores", "mean_scores", "token_scores"]

#: Side and window of the original monosemanticity.
ORIGINAL_SIDE = 1024
ORIGINAL_WINDOW = 51


@dataclass(frozen=True)
class TokenScores:
    """Figures of one image, or their means.

    Attributes
    ----------
    tokens : float
        Number of tokens.
    asa : float
        Achievable segmentation accuracy: share of pixels that are right if each token takes the
        region it overlaps most.
    undersegmentation : float
        Pixels of tokens beyond the regions they reach into, the smaller part of each token counted
        (Neubert and Protzel), as a share of the image; lower is better.
    covering : float
        Mean over the regions, weighted by area, of the IoU with the best single token.
    boundary_recall, boundary_precision : float
        Share of human boundary pixels with a token border within `tolerance` px, and the reverse.
    monosemanticity : float
        The original's: share of tokens whose core, eroded by a 51 px square on a 1024 px canvas,
        meets no human contour. Tokens narrower than the square always pass.
    purity : float
        Share of tokens of which at least 95 % lie in one region: the same question without bias.
    coverage : float
        Share of pixels in any token.
    """

    tokens: float
    asa: float
    undersegmentation: float
    covering: float
    boundary_recall: float
    boundary_precision: float
    monosemanticity: float
    purity: float
    coverage: float

    def to_dict(self) -> dict[str, float]:
        """Convert to figures by name."""
        return asdict(self)


class Reference:
    """Segmentations of one image, prepared once for many token maps.

    Parameters
    ----------
    label_maps : sequence of ndarray
        (H, W) integers of any values, one an annotator.
    original : bool
        Prepare the original's monosemanticity too, the slow part.

    Raises
    ------
    ConfigError
        No annotator, or sizes that differ.
    """

    def __init__(self, label_maps: Sequence[NDArray[Any]], *, original: bool = True) -> None:
        if not label_maps:
            raise ConfigError("no annotations: nothing to compare with")
        self.shape = label_maps[0].shape
        for index, one in enumerate(label_maps):
            if one.shape != self.shape:
                raise ConfigError(f"annotation {index} is {one.shape}, the first one {self.shape}")
        self.lines = [region_lines(one) for one in label_maps]
        self.distances = [_distance_to(one) for one in self.lines]
        self.regions: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        for one in label_maps:
            values, inverse = np.unique(one, return_inverse=True)
            region = inverse.reshape(one.shape).astype(np.int64)
            areas = np.bincount(region.ravel(), minlength=len(values)).astype(np.float64)
            self.regions.append((region, areas))
        self.contours = [_original_contour(one) for one in label_maps] if original else []


def token_scores(
    token_map: NDArray[Any],
    reference: Reference,
    *,
    tolerance: float = 2.0,
    pure_share: float = 0.95,
) -> TokenScores:
    """Compare a token map with the segmentations of one or more annotators.

    Parameters
    ----------
    token_map : ndarray
        (H, W) integers, 0 … N − 1; negative where no token is.
    reference : Reference
        The annotators. Without the original's part `monosemanticity` is NaN.
    tolerance : float
        Of boundary recall and precision, pixels.
    pure_share : float
        What makes a token pure.

    Returns
    -------
    TokenScores
        Means over annotators.

    Raises
    ------
    ConfigError
        The token map has another size.

    Examples
    --------
    >>> regions = np.repeat([[0, 1]], 8, axis=0).repeat(8, axis=1)
    >>> scores = token_scores(regions, Reference([regions]))
    >>> scores.asa, scores.covering, scores.boundary_recall, scores.purity
    (1.0, 1.0, 1.0, 1.0)
    """
    if token_map.shape != reference.shape:
        raise ConfigError(
            f"the token map is {token_map.shape}, the annotation {reference.shape}; "
            "bring the token map to the annotation's size first"
        )
    borders = region_lines(token_map)
    distance = _distance_to(borders)
    overlap = np.mean(
        [_overlap_figures(token_map, *one, pure_share) for one in reference.regions], axis=0
    )
    asa, under, covering, purity = overlap.tolist()
    recalls = [_near(distance, lines, tolerance) for lines in reference.lines]
    precisions = [_near(far, borders, tolerance) for far in reference.distances]
    return TokenScores(
        tokens=float(len(np.unique(token_map[token_map >= 0]))),
        asa=asa,
        undersegmentation=under,
        covering=covering,
        boundary_recall=float(np.mean(recalls)),
        boundary_precision=float(np.mean(precisions)),
        monosemanticity=_monosemanticity(token_map, reference.contours),
        purity=purity,
        coverage=float((token_map >= 0).mean()),
    )


def mean_scores(scores: Sequence[TokenScores]) -> TokenScores:
    """Average the figures over images.

    Raises
    ------
    ConfigError
        No image.
    """
    if not scores:
        raise ConfigError("no images to average")
    names = [one.name for one in fields(TokenScores)]
    return TokenScores(
        **{name: float(np.mean([getattr(one, name) for one in scores])) for name in names}
    )


def _monosemanticity(token_map: NDArray[Any], contours: Sequence[NDArray[np.bool_]]) -> float:
    """Compute the share of tokens whose core meets no human contour, as the original code does."""
    if not contours:
        return float("nan")
    tokens = _to_original_side(token_map)
    highest = ndimage.maximum_filter(tokens, ORIGINAL_WINDOW, mode="nearest")
    core = highest == ndimage.minimum_filter(tokens, ORIGINAL_WINDOW, mode="nearest")
    core &= tokens >= 0
    present = len(np.unique(tokens[tokens >= 0]))
    hits = [len(np.unique(tokens[core & contour])) for contour in contours]
    return 1.0 - float(np.mean(hits)) / max(1, present)


def _original_contour(label_map: NDArray[Any]) -> NDArray[np.bool_]:
    regions = _to_original_side(label_map)
    return ndimage.maximum_filter(regions, 3) != ndimage.minimum_filter(regions, 3)


def _to_original_side(values: NDArray[Any]) -> NDArray[np.int32]:
    """Resize to the original's square canvas, nearest neighbour."""
    square: Any = rescale(
        values, (ORIGINAL_SIDE, ORIGINAL_SIDE), order=0, preserve_range=True, anti_aliasing=False
    )
    return square.astype(np.int32)


def _overlap_figures(
    token_map: NDArray[Any],
    region: NDArray[np.int64],
    region_area: NDArray[np.float64],
    pure_share: float,
) -> tuple[float, float, float, float]:
    """Compute ASA, undersegmentation error, covering and purity from the pairs that occur."""
    inside = token_map >= 0
    tokens, regions = int(token_map.max()) + 1, len(region_area)
    if tokens == 0:
        return 0.0, 0.0, 0.0, 0.0
    pair = token_map[inside].astype(np.int64) * regions + region[inside]
    pairs, common = np.unique(pair, return_counts=True)
    token, region_of = np.divmod(pairs, regions)
    token_area = np.bincount(token, common, tokens)
    largest = np.zeros(tokens)
    np.maximum.at(largest, token, common)
    best = np.zeros(regions)
    np.maximum.at(best, region_of, common / (token_area[token] + region_area[region_of] - common))
    spilled = np.minimum(common, token_area[token] - common).sum()
    real = token_area > 0
    return (
        float(largest.sum() / region.size),
        float(spilled / region.size),
        float((best * region_area).sum() / region.size),
        float((largest >= pure_share * token_area)[real].mean()),
    )


def _near(distance: NDArray[np.float64], lines: NDArray[np.bool_], tolerance: float) -> float:
    """Compute the share of line pixels within the tolerance of the others; 1 without lines."""
    return float((distance[lines] <= tolerance).mean()) if lines.any() else 1.0


def _distance_to(lines: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Compute the distance of each pixel to the nearest line pixel; infinite without lines."""
    if not lines.any():
        return np.full(lines.shape, np.inf)
    distance: Any = ndimage.distance_transform_edt(~lines)
    return distance
