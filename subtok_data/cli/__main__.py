"""``python -m subtok_data.cli`` is ``subtok``."""

from __future__ import annotations

import sys

from subtok_data.cli import main

__all__ = []

sys.exit(main())
