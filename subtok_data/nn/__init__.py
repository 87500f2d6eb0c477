"""Modules that turn a batch into what a language model reads: features, tokens, one sequence."""

from __future__ import annotations

from subtok_data.nn.cells import TokenCells, pool_tokens, token_cells
from subtok_data.nn.embedding import TokenEmbedding
from subtok_data.nn.features import FeatureEncoder
from subtok_data.nn.knn import nearest_neighbors, smooth_feature_map, smooth_scores
from subtok_data.nn.merge import merge_visual_tokens
from subtok_data.nn.roi import roi_pool_tokens
from subtok_data.nn.shapes import shape_codes

__all__ = [
    "FeatureEncoder",
    "TokenCells",
    "TokenEmbedding",
    "merge_visual_tokens",
    "nearest_neighbors",
    "pool_tokens",
    "roi_pool_tokens",
    "shape_codes",
    "smooth_feature_map",
    "smooth_scores",
    "token_cells",
]
