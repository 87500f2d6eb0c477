"""The decoder behind :func:`subtok_data.images.to_rgb`: files, Pillow modes, arrays, tensors."""

from __future__ import annotations

import io
import os
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    IcnsImagePlugin,
    IcoImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
)

from subtok_data.errors import ImageError
from subtok_data.images.memory import available_memory

if TYPE_CHECKING:
    import torch

__all__ = ["PEAK_BYTES", "SCALES", "Decoder"]

SCALES = (8, 4, 2)
"""Divisors of its size that a JPEG can be decoded at."""

PEAK_BYTES = 25
"""Memory per pixel that decoding takes at most for a while, the result included (see the tests)."""

_SMALL = 1 << 26
"""Bytes that are taken without a look at what is free."""

_STRIP = 1 << 20
"""Pixels that are copied at a time."""

_JPEG_2000 = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_CODESTREAM = b"\xff\x4f\xff\x51"

# Page descriptions have no pixels of their own, and Pillow hands EPS to an external program. IPTC
# wraps a file of any kind and size, which Pillow opens only when it decodes.
_NOT_RASTER = frozenset({"EPS", "IPTC", "WMF"})
_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Decoder:
    """Turns one value into RGB uint8 (H, W, 3); options and errors as in ``to_rgb``.

    Examples
    --------
    >>> import numpy as np
    >>> Decoder(max_pixels=None, background=(255, 255, 255)).decode(np.ones((2, 3), bool)).shape
    (2, 3, 3)
    """

    max_pixels: int | None
    background: tuple[int, int, int]

    def decode(self, value: object, reduction: int = 1) -> NDArray[np.uint8]:
        """Convert `value`, dispatching on its type; raises ImageError."""
        if isinstance(value, Mapping):
            value = _content_of(cast("Mapping[str, object]", value))
        if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
            raise ImageError("a masked array has pixels without a value: give array.filled(0)")
        if isinstance(value, np.ndarray):
            return self._array(cast("NDArray[Any]", value))
        if isinstance(value, Image.Image):
            return self._pillow(value)
        if _is_tensor(value):
            return self._tensor(value)
        if isinstance(value, memoryview):
            value = _bytes_of(value)
        if isinstance(value, bytes | bytearray):
            return self._stream(io.BytesIO(value), reduction)
        if isinstance(value, str | os.PathLike):
            return self._path(os.fsdecode(cast("str | os.PathLike[str]", value)), reduction)
        raise ImageError(
            f"cannot read an image from {type(value).__name__}: give a path, bytes, "
            "{'bytes': ..., 'path': ...}, a Pillow image, a numpy array or a torch tensor"
        )

    def jpeg_header(self, content: bytes) -> tuple[tuple[int, int], int] | None:
        """Stored height and width of a JPEG, and its EXIF orientation; None if it is no JPEG."""
        try:
            image = self._identify(io.BytesIO(content))
        except MemoryError:
            raise
        except Exception:
            return None  # decoding it says why
        if not isinstance(image, JpegImagePlugin.JpegImageFile):
            return None
        self._check_size(image.height, image.width)
        return (image.height, image.width), _orientation(image)

    def _path(self, path: str, reduction: int) -> NDArray[np.uint8]:
        if "://" in path:
            raise ImageError("this is an address, not a file: download it, or pass its bytes")
        try:
            with Path(path).open("rb") as stream:
                return self._stream(stream, reduction)
        except ImageError:
            raise
        except (OSError, ValueError) as error:
            raise ImageError(f"cannot be opened: {error}") from error

    def _stream(self, stream: IO[bytes], reduction: int) -> NDArray[np.uint8]:
        # Plugins raise almost anything on a broken header, and all of it means a bad image.
        try:
            image = self._identify(stream)
        except (ImageError, MemoryError):
            raise
        except Exception as error:
            raise ImageError(f"not a readable image: {_cause(error)}") from error
        if reduction > 1 and isinstance(image, JpegImagePlugin.JpegImageFile):
            self._check_size(image.height, image.width)
            image.draft(None, (image.width // reduction, image.height // reduction))
        return self._pillow(image)

    def _pillow(self, image: Image.Image) -> NDArray[np.uint8]:
        self._check_size(image.height, image.width)
        try:
            image.load()
            image = _upright(image)
        except MemoryError:
            raise
        except Exception as error:
            raise ImageError(f"the pixels cannot be decoded: {_cause(error)}") from error
        if image.mode == "F" or image.mode.startswith("I"):
            return self._wide_grey(image)
        if image.has_transparency_data:
            # The premultiplied modes convert to their plain sibling only.
            plain = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
            image = image.convert(plain) if plain else image
            return self._composite(image if image.mode == "RGBA" else image.convert("RGBA"))
        return _pixels(image if image.mode == "RGB" else image.convert("RGB"))

    def _wide_grey(self, image: Image.Image) -> NDArray[np.uint8]:
        """Convert modes of more than 8 bits, which Pillow's own conversion clips at 255."""
        values = np.asarray(image)
        if image.mode == "F":
            _check_finite(values)
            grey = _from_float(values, 1 if values.max() <= 1 else 255)
        elif image.mode == "I":
            low, high = int(values.min()), int(values.max())
            if low < 0 or high > 65535:
                raise ImageError(
                    f"mode 'I' with values {low} to {high}: 0 to 255 or 0 to 65535 can be read"
                )
            grey = values.astype(np.uint8) if high <= 255 else _from_16_bit(values)
        else:
            grey = _from_16_bit(values)
        rgb = np.repeat(grey[:, :, None], 3, axis=2)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            rgb[values == transparent] = self.background
        return rgb

    def _array(self, array: NDArray[Any]) -> NDArray[np.uint8]:
        if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
            raise ImageError(
                f"an array of shape {array.shape} is no image: (H, W), or (H, W, C) with C from 1 "
                "to 4; transpose (C, H, W) first"
            )
        self._check_size(array.shape[0], array.shape[1])
        levels = _levels(array)
        channels = 1 if levels.ndim == 2 else levels.shape[2]
        if channels == 1:
            return np.repeat(levels.reshape(*levels.shape[:2], 1), 3, axis=2)
        if channels == 3:
            return np.require(levels, requirements=["C", "W"])
        return self._composite(Image.fromarray(np.ascontiguousarray(levels)).convert("RGBA"))

    def _composite(self, image: Image.Image) -> NDArray[np.uint8]:
        canvas = Image.new("RGB", image.size, self.background)
        canvas.paste(image, mask=image)
        return _pixels(canvas)

    def _tensor(self, tensor: torch.Tensor) -> NDArray[np.uint8]:
        if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 2, 3, 4)):
            raise ImageError(
                f"a tensor of shape {tuple(tensor.shape)} is no image: (H, W), or (C, H, W) with C "
                "from 1 to 4; permute (H, W, C) first"
            )
        self._check_size(tensor.shape[-2], tensor.shape[-1])  # a sparse one has no pixels yet
        try:
            array = _values(tensor)
        except (TypeError, RuntimeError) as error:  # also NotImplementedError
            raise ImageError(
                f"a tensor of {tensor.dtype}, {tensor.layout} on {str(tensor.device)!r} cannot be "
                f"read: {_cause(error).splitlines()[0]}; give a dense one of uint8, or a float in "
                "[0, 1]"
            ) from error
        return self._array(array if array.ndim == 2 else array.transpose(1, 2, 0))

    def _identify(self, stream: IO[bytes]) -> Image.Image:
        """Read the header of an image file with the plugins registered in Pillow.

        ``Image.open`` compares the size with a global limit and warns or raises by it. Having our
        own limit instead, without a write to that global or a warning filter (both of which other
        threads would see), needs the loop over the registry.
        """
        start = stream.read(16)
        if not start:
            raise ImageError("the file is empty (0 bytes)")
        reasons: list[str] = []
        tried = set(_NOT_RASTER)
        for load_plugins in (Image.preinit, Image.init):
            load_plugins()
            for name in [name for name in Image.ID if name not in tried]:
                tried.add(name)
                factory, accept = Image.OPEN[name]
                verdict = accept(start) if accept is not None else True
                if isinstance(verdict, str):  # why a plugin would read this file but cannot
                    reasons.append(verdict)
                elif verdict:
                    try:
                        stream.seek(0)
                        self._check_embedded(name, stream)
                        stream.seek(0)
                        return factory(stream, "")
                    except (SyntaxError, IndexError, TypeError, struct.error) as error:
                        # What plugins raise for "not mine"; the next one may know the file.
                        if accept is not None:
                            reasons.append(f"{name}: {_cause(error)}")
        detail = f" ({'; '.join(reasons)})" if reasons else ""
        raise ImageError(f"not an image in any format Pillow knows{detail}")

    def _check_embedded(self, name: str, stream: IO[bytes]) -> None:
        """Check the images inside an icon, whose own header may name another size.

        Pillow decodes those of ICO when it opens the file, and those of ICNS without a look at
        their size.
        """
        if name == "ICO":
            icon = IcoImagePlugin.IcoFile(stream)
            parts = [(icon.entry[0].offset, -1)] if icon.entry else []
        elif name == "ICNS":
            parts = list(IcnsImagePlugin.IcnsFile(stream).dct.values())
        else:
            return
        for offset, length in parts:
            stream.seek(offset)
            content = io.BytesIO(stream.read(length))
            if content.getvalue()[:8] == b"\x89PNG\r\n\x1a\n":
                size = PngImagePlugin.PngImageFile(content).size
            elif name == "ICO":
                size = BmpImagePlugin.DibImageFile(content).size
                size = (size[0], size[1] // 2)  # the lower half is the mask
            elif content.getvalue()[:12] == _JPEG_2000 or content.getvalue()[:4] == _CODESTREAM:
                size = Jpeg2KImagePlugin.Jpeg2KImageFile(content).size
            else:
                continue  # of a size that the format fixes, at most 128 pixels
            self._check_size(size[1], size[0])

    def _check_size(self, height: int, width: int) -> None:
        if height < 1 or width < 1:
            raise ImageError(f"the image has no pixel: height {height}, width {width}")
        if self.max_pixels is not None and height * width > self.max_pixels:
            raise ImageError(
                f"{height} x {width} = {height * width} pixels exceed max_pixels="
                f"{self.max_pixels}: raise the limit if the file is trusted"
            )
        needed = height * width * PEAK_BYTES
        if needed < _SMALL:
            return
        free = available_memory()
        if free is not None and needed > free:
            raise ImageError(
                f"{height} x {width} pixels may take {needed / 1e6:.0f} MB to decode, and "
                f"{free / 1e6:.0f} MB of memory are free: use fewer workers, or lower max_pixels"
            )


def _content_of(row: Mapping[str, object]) -> object:
    for key in ("bytes", "path"):
        if row.get(key) is not None:
            return row[key]
    kinds = {key: type(item).__name__ for key, item in row.items()}
    raise ImageError(f"a mapping needs 'bytes' or 'path' that is not None; this one holds {kinds}")


def _upright(image: Image.Image) -> Image.Image:
    method = _TRANSPOSE.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> int:
    try:
        return cast("int", image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:
        return 1  # a damaged EXIF block says nothing about the pixels


def _levels(array: NDArray[Any]) -> NDArray[np.uint8]:
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "u" and size == 1:
        return np.asarray(array)
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind == "u" and size == 2:
        return _from_16_bit(array)
    if kind == "f":
        _check_finite(array)
        return _from_float(array, 1)
    raise ImageError(
        f"dtype {array.dtype} has no fixed range: convert to uint8, uint16, bool, or a float in "
        "[0, 1]"
    )


def _from_16_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_float(values: NDArray[Any], top: int) -> NDArray[np.uint8]:
    """Quantise floats in [0, top]; raise ImageError for values that round outside 0..255."""
    levels = np.rint(values.astype(np.float32) * np.float32(255 / top))
    if levels.min() < 0 or levels.max() > 255:
        raise ImageError(
            f"float values from {float(values.min()):.6g} to {float(values.max()):.6g} lie outside "
            f"[0, {top}]: divide by 255, or undo the normalisation"
        )
    return levels.astype(np.uint8)


def _check_finite(values: NDArray[Any]) -> None:
    wrong = values.size - int(np.isfinite(values).sum())
    if wrong:
        raise ImageError(f"{wrong} of {values.size} float values are NaN or infinite")


def _is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    # Who holds a tensor has imported torch; importing it here would charge every worker for it.
    module = sys.modules.get("torch")
    return module is not None and isinstance(value, module.Tensor)


def _values(tensor: torch.Tensor) -> NDArray[Any]:
    if tensor.is_meta:
        raise TypeError("a meta tensor has no values")
    if str(tensor.layout) != "torch.strided":
        tensor = tensor.to_dense()
    plain = tensor.detach().cpu()
    if plain.is_floating_point() and str(plain.dtype)[6:] not in ("float16", "float32", "float64"):
        plain = plain.float()  # numpy has no bfloat16 and no floats of 8 bits
    return np.asarray(plain.resolve_conj().numpy())


def _bytes_of(view: memoryview) -> bytes:
    try:
        return view.tobytes()
    except (ValueError, NotImplementedError) as error:
        raise ImageError(f"a memoryview that cannot be read: {error}") from error


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Copy an RGB image to an array by strips: Pillow copies twice what it hands over."""
    array = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        array[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return array


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__
