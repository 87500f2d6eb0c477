from .columns import collate_columns as collate_columns, put_column_row as put_column_row
from .model_kwargs import model_inputs as model_inputs
from .pixels import PixelConfig as PixelConfig, stack_pixels as stack_pixels
from .tokens import list_regions as list_regions, pad_tokens as pad_tokens
from .validate import validate_batch as validate_batch
