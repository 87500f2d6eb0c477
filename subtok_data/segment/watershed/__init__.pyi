from .api import watershed_tokens as watershed_tokens
from .flood import Backend as Backend, flood_from as flood_from
from .minima import minima_seeds as minima_seeds
from .partitioner import (
    DEFAULT_THRESHOLD as DEFAULT_THRESHOLD,
    WatershedPartitioner as WatershedPartitioner,
)
from .seeds import Seeds as Seeds
