from .config import PRESETS as PRESETS, preset as preset
from .layouts import read_annotators as read_annotators, read_label_map as read_label_map
from .readers import parse_source as parse_source
from .trainer import Trainer as Trainer
