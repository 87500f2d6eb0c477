"""The boundary model: the only place that touches a device."""

from __future__ import annotations

from subtok_data.boundary.loading import DEFAULT_WEIGHTS
from subtok_data.boundary.maps import DeviceMaps
from subtok_data.boundary.model import BoundaryModel

__all__ = ["DEFAULT_WEIGHTS", "BoundaryModel", "DeviceMaps"]
