from .budget import Budget as Budget, Overflow as Overflow, apply_budget as apply_budget
from .geometry import (
    Order as Order,
    Segmented as Segmented,
    TokenGeometry as TokenGeometry,
    arrange as arrange,
    label_image as label_image,
    measure as measure,
    token_shapes as token_shapes,
)
from .kernels import (
    compile_seconds as compile_seconds,
    normalise_planes as normalise_planes,
    relabel as relabel,
    share_cells as share_cells,
    split_planes as split_planes,
)
from .masks import (
    FillRules as FillRules,
    RLEMasks as RLEMasks,
    label_runs as label_runs,
    mask_box as mask_box,
    match_regions as match_regions,
    segmentation_runs as segmentation_runs,
)
from .merging import MergeCost as MergeCost, region_adjacency as region_adjacency
from .partition import (
    Evidence as Evidence,
    Partition as Partition,
    Partitioner as Partitioner,
    TokenMap as TokenMap,
    as_partitioner as as_partitioner,
    token_dtype as token_dtype,
)
from .partitioners import (
    GridPartitioner as GridPartitioner,
    LabelMapPartitioner as LabelMapPartitioner,
    MaskPartitioner as MaskPartitioner,
    Method as Method,
    PaintOrder as PaintOrder,
    PromptedPartitioner as PromptedPartitioner,
    StoredPartitioner as StoredPartitioner,
    SuperpixelPartitioner as SuperpixelPartitioner,
    default_rules as default_rules,
)
from .prompts import (
    BoxFormat as BoxFormat,
    Prompts as Prompts,
    add_prompts as add_prompts,
    fit_prompts as fit_prompts,
    pixel_box as pixel_box,
    prompt_regions as prompt_regions,
)
from .task import (
    SegmentTask as SegmentTask,
    segment_image as segment_image,
    warn_of_shortfall as warn_of_shortfall,
)
from .warmup import warm_up as warm_up
from .watershed import (
    DEFAULT_THRESHOLD as DEFAULT_THRESHOLD,
    Backend as Backend,
    WatershedPartitioner as WatershedPartitioner,
    watershed_tokens as watershed_tokens,
)
from .worker import Slot as Slot, allocate_slot as allocate_slot
