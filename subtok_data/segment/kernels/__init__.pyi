from .cache import compile_seconds as compile_seconds
from .cells import share_cells as share_cells
from .components import label_runs as label_runs, paint_runs as paint_runs
from .flood import flood_pixels as flood_pixels, scratch_slots as scratch_slots
from .graph import gather_cracks as gather_cracks
from .masks import label_parts as label_parts, paint_masks as paint_masks
from .merging import (
    AREA as AREA,
    BALANCED as BALANCED,
    BOUNDARY as BOUNDARY,
    SHARE as SHARE,
    Cost as Cost,
    cut_merges as cut_merges,
    merge_neighbours as merge_neighbours,
)
from .minima import regional_minima as regional_minima, smooth as smooth
from .overlaps import (
    CLIPPED as CLIPPED,
    DIVIDED as DIVIDED,
    WHOLE as WHOLE,
    count_overlaps as count_overlaps,
    union_runs as union_runs,
)
from .planes import normalise_planes as normalise_planes, split_planes as split_planes
from .scratch import borrow as borrow
from .tokens import (
    measure_tokens as measure_tokens,
    relabel as relabel,
    sample_shapes as sample_shapes,
)
