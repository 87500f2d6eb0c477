from .lite import LiteBoundaryNet as LiteBoundaryNet
from .maps import DeviceMaps as DeviceMaps, PendingMaps as PendingMaps
from .model import BoundaryModel as BoundaryModel
from .weights_io import (
    DEFAULT_WEIGHTS as DEFAULT_WEIGHTS,
    IMAGENET_NORMALISATION as IMAGENET_NORMALISATION,
    Normalisation as Normalisation,
    load_network as load_network,
    save_network as save_network,
)
