"""Figures of an evaluation, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from subtok_data.evaluation.boundary_metrics import BoundaryScores
from subtok_data.evaluation.token_metrics import TokenScores

__all__ = ["Report", "TokenRow"]

_SHOWN = (
    ("tokens", "tokens", ".1f"),
    ("asa", "ASA", ".3f"),
    ("undersegmentation", "UE", ".3f"),
    ("covering", "covering", ".3f"),
    ("boundary_recall", "recall", ".3f"),
    ("boundary_precision", "precision", ".3f"),
    ("monosemanticity", "mono", ".3f"),
    ("purity", "purity", ".3f"),
    ("coverage", "coverage", ".3f"),
)


@dataclass(frozen=True)
class TokenRow:
    """Mean figures of one method at one setting.

    Attributes
    ----------
    method, setting : str
        For example ``"patch"``, ``"64"``.
    scores : TokenScores
        Means over the images.
    """

    method: str
    setting: str
    scores: TokenScores


@dataclass(frozen=True)
class Report:
    """Figures of one annotated set.

    Attributes
    ----------
    dataset : str
        Its name.
    images : int
        How many.
    boundaries : mapping of str to BoundaryScores
        By boundary map.
    tokens : sequence of TokenRow
        By method and setting.
    """

    dataset: str
    images: int
    boundaries: Mapping[str, BoundaryScores] = field(default_factory=dict[str, BoundaryScores])
    tokens: Sequence[TokenRow] = ()

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, with the precision-recall curves."""
        return {
            "dataset": self.dataset,
            "images": self.images,
            "boundaries": {
                name: {
                    "ods": s.ods,
                    "ods_threshold": s.ods_threshold,
                    "ois": s.ois,
                    "ap": s.ap,
                    "precision": s.precision.round(5).tolist(),
                    "recall": s.recall.round(5).tolist(),
                    "thresholds": s.thresholds.round(5).tolist(),
                }
                for name, s in self.boundaries.items()
            },
            "tokens": [
                {
                    "method": row.method,
                    "setting": row.setting,
                    **{
                        key: round(value, 5) if np.isfinite(value) else None
                        for key, value in row.scores.to_dict().items()
                    },
                }
                for row in self.tokens
            ],
        }

    def to_markdown(self) -> str:
        """Write a table of boundary figures and one of token figures."""
        lines = [f"### {self.dataset}, {self.images} images", ""]
        if self.boundaries:
            lines += ["| boundary map | ODS | at | OIS | AP |", "|---|---|---|---|---|"]
            lines += [
                f"| {name} | {s.ods:.3f} | {s.ods_threshold:.2f} | {s.ois:.3f} | {s.ap:.3f} |"
                for name, s in self.boundaries.items()
            ]
            lines.append("")
        if self.tokens:
            shown = [
                one
                for one in _SHOWN
                if any(np.isfinite(getattr(row.scores, one[0])) for row in self.tokens)
            ]
            lines.append("| method | setting | " + " | ".join(t for _, t, _ in shown) + " |")
            lines.append("|---|---|" + "---|" * len(shown))
            lines += [
                f"| {row.method} | {row.setting} | "
                + " | ".join(format(getattr(row.scores, key), how) for key, _, how in shown)
                + " |"
                for row in self.tokens
            ]
            lines.append("")
        return "\n".join(lines)
