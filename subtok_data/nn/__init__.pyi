from .cells import TokenCells as TokenCells, pool_tokens as pool_tokens, token_cells as token_cells
from .embedding import TokenEmbedding as TokenEmbedding
from .features import FeatureEncoder as FeatureEncoder
from .knn import (
    nearest_neighbors as nearest_neighbors,
    smooth_feature_map as smooth_feature_map,
    smooth_scores as smooth_scores,
)
from .merge import merge_visual_tokens as merge_visual_tokens
from .roi import roi_pool_tokens as roi_pool_tokens
from .shapes import shape_codes as shape_codes
