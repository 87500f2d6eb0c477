from .grid import GridPartitioner as GridPartitioner
from .label_map import LabelMapPartitioner as LabelMapPartitioner
from .masks import MaskPartitioner as MaskPartitioner, PaintOrder as PaintOrder
from .prompted import PromptedPartitioner as PromptedPartitioner, default_rules as default_rules
from .stored import StoredPartitioner as StoredPartitioner
from .superpixels import Method as Method, SuperpixelPartitioner as SuperpixelPartitioner
