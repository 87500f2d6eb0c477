"""Run the command ``subtok`` as ``python -m subtok_data``."""

from __future__ import annotations

import sys

from subtok_data.cli import main

__all__ = []

if __name__ == "__main__":
    sys.exit(main())
