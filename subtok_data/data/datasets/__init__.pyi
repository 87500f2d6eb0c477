from .image_files import ImageFiles as ImageFiles
from .image_sources import open_images as open_images
from .iterable import SubobjectIterableDataset as SubobjectIterableDataset
from .map_style import SubobjectDataset as SubobjectDataset, row_key as row_key
from .mixture import MixedDataset as MixedDataset
from .prompt_columns import PromptColumns as PromptColumns
from .sample import ColumnError as ColumnError, Sample as Sample, decode_row as decode_row
from .sharded_files import (
    ParquetImages as ParquetImages,
    ShardedImages as ShardedImages,
    StoredImages as StoredImages,
    TarImages as TarImages,
)
from .transforms import (
    LargeScaleJitter as LargeScaleJitter,
    TextSafeHorizontalFlip as TextSafeHorizontalFlip,
    refuse_plain_flips as refuse_plain_flips,
)
