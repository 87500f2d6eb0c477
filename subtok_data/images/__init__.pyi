from .canvas import (
    DEFAULT_SIZE as DEFAULT_SIZE,
    Canvas as Canvas,
    canvas_size as canvas_size,
    resize as resize,
)
from .convert import (
    DEFAULT_MAX_PIXELS as DEFAULT_MAX_PIXELS,
    IMAGE_SUFFIXES as IMAGE_SUFFIXES,
    ImageLike as ImageLike,
    image_path as image_path,
    to_rgb as to_rgb,
)
from .size import image_size as image_size
