from .lite import LiteBoundaryNet as LiteBoundaryNet
from .model import BoundaryModel as BoundaryModel, DeviceMaps as DeviceMaps
from .weights_io import (
    DEFAULT_WEIGHTS as DEFAULT_WEIGHTS,
    IMAGENET_NORMALISATION as IMAGENET_NORMALISATION,
    Normalisation as Normalisation,
    load_network as load_network,
    save_network as save_network,
)
