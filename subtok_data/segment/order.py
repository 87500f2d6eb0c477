"""The order of tokens in their sequence."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from subtok_data.errors import ConfigError
from subtok_data.segment.geometry import TokenGeometry

__all__ = ["Order", "check_order", "order_tokens"]

Order = Literal["area", "raster"]


def check_order(order: str) -> None:
    """Raise ConfigError for an order that does not exist."""
    if order not in get_args(Order):
        raise ConfigError(f"order={order!r}: expected one of {get_args(Order)}")


def order_tokens(geometry: TokenGeometry, order: Order = "area") -> NDArray[np.int64]:
    """Sort tokens; ties go by the raster position of their first pixels, so there are none left.

    Parameters
    ----------
    geometry : TokenGeometry
        Of N tokens.
    order : {"area", "raster"}
        ``"area"``: largest first, as in the paper (EPOC, section 3). ``"raster"``: by the center,
        top to bottom, then left to right.

    Returns
    -------
    (N,) int64
        Token numbers in their new order.

    Raises
    ------
    ConfigError
        Unknown order.

    Examples
    --------
    >>> from subtok_data.segment.geometry import measure
    >>> order_tokens(measure(np.array([[0, 1, 1]], np.int16), 2), "area")
    array([1, 0])
    """
    check_order(order)
    if order == "area":
        return np.lexsort((geometry.first_pixels, -geometry.areas))
    y, x = geometry.centers.T
    return np.lexsort((geometry.first_pixels, x, y))
