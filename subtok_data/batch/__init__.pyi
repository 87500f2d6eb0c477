from .columns import collate_columns as collate_columns, put_column_row as put_column_row
from .keys import (
    IGNORE_INDEX as IGNORE_INDEX,
    KEYS as KEYS,
    PACKED_KEYS as PACKED_KEYS,
    RESERVED_KEYS as RESERVED_KEYS,
    VISUAL_KEYS as VISUAL_KEYS,
    Key as Key,
    Layout as Layout,
)
from .model_kwargs import model_inputs as model_inputs
from .pixels import PixelConfig as PixelConfig, stack_pixels as stack_pixels
from .recycled import RecycledArrays as RecycledArrays
from .tokens import list_regions as list_regions, pad_tokens as pad_tokens, round_up as round_up
from .typed_batch import Batch as Batch
from .upload import BatchUpload as BatchUpload, Packed as Packed
from .validate import BatchError as BatchError, validate_batch as validate_batch
