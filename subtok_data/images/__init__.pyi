from .canvas import (
    DEFAULT_SIZE as DEFAULT_SIZE,
    Canvas as Canvas,
    canvas_size as canvas_size,
)
from .content_key import (
    KEY_BYTES as KEY_BYTES,
    join_keys as join_keys,
    pixel_key as pixel_key,
    read_with_key as read_with_key,
)
from .convert import (
    IMAGE_SUFFIXES as IMAGE_SUFFIXES,
    ImageLike as ImageLike,
    image_path as image_path,
    to_rgb as to_rgb,
)
from .encoded import (
    EncodedImage as EncodedImage,
    SourceImage as SourceImage,
    decode_whole as decode_whole,
    fit_image as fit_image,
    open_image as open_image,
)
from .resizing import resize as resize
from .size import DEFAULT_MAX_PIXELS as DEFAULT_MAX_PIXELS, image_size as image_size
