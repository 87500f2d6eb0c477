from .bsds import (
    BSDSAnnotation as BSDSAnnotation,
    list_bsds as list_bsds,
    read_bsds_mat as read_bsds_mat,
)
from .coco import (
    OPEN_LICENCES as OPEN_LICENCES,
    CocoFile as CocoFile,
    CocoImage as CocoImage,
    CocoObject as CocoObject,
    PanopticMap as PanopticMap,
    read_coco as read_coco,
    read_json as read_json,
)
from .image_pairs import (
    check_pair_of_folders as check_pair_of_folders,
    images_by_stem as images_by_stem,
    pair_by_stem as pair_by_stem,
)
from .label_png import read_label_png as read_label_png
from .panoptic import (
    TOKEN_CATEGORY as TOKEN_CATEGORY,
    PanopticWriter as PanopticWriter,
    coco_categories as coco_categories,
)
from .sa1b import read_sa1b as read_sa1b
