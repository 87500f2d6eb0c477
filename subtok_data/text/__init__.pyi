from .assemble import layout_text as layout_text
from .config import TextConfig as TextConfig
from .encoder import TextEncoder as TextEncoder
from .packing import (
    pack_batch as pack_batch,
    packing_refusal as packing_refusal,
    text_efficiency as text_efficiency,
    unpack_batch as unpack_batch,
)
from .regions import (
    RegionRow as RegionRow,
    RegionText as RegionText,
    layout_regions as layout_regions,
    region_text_loss as region_text_loss,
)
from .rows import EncodedText as EncodedText, TextRow as TextRow, pad_rows as pad_rows
