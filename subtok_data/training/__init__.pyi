from .config import PRESETS as PRESETS, preset as preset
from .mask_files import read_masks as read_masks, write_masks as write_masks
from .readers import parse_source as parse_source
from .samples import BoundarySource as BoundarySource
from .trainer import Trainer as Trainer
