"""The boundary model: images in, maps of the probability that a pixel lies on a boundary out."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from subtok_data.boundary.graphs import ForwardGraphs
from subtok_data.boundary.maps import DeviceMaps, PendingMaps
from subtok_data.boundary.network import UPSAMPLING, BoundaryNetwork
from subtok_data.boundary.padding import (
    CANVAS_MULTIPLE,
    Pixels,
    balanced,
    check_canvas_step,
    checked,
    group,
    stack,
)
from subtok_data.boundary.scales import check_scales, resized_map, scaled_image, scaled_size
from subtok_data.boundary.tiles import TilePlan, check_tiling, plan_tiles
from subtok_data.boundary.weights_io import (
    DEFAULT_OVERLAP,
    IMAGENET_NORMALISATION,
    MapOptions,
    Normalisation,
    load_network,
    save_network,
)
from subtok_data.device_streams import DeviceStream
from subtok_data.devices import (
    DeviceMemoryError,
    Precision,
    refuse_in_worker,
    refuse_to_pickle,
    resolve_device,
)
from subtok_data.errors import ConfigError
from subtok_data.hub import model_card, upload_folder
from subtok_data.images import to_rgb

__all__ = ["BoundaryModel"]

Triple = tuple[float, float, float]

# A batch may always hold as many pixels as batch_size images of this side ...
_BATCH_SIDE = 512

# ... and more where the device's free memory, divided by this, is more. SegFormer-b0 in float16 is
# reckoned to take some 700 bytes a pixel, lite0 a third of that: most is left to others.
_BYTES_A_PIXEL = 4096

#: Pixels (N, H, W, 3) to probabilities (N, H, W) and whether the logits are finite (N,).
_Forward = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]

#: Probabilities (H, W) of each image, and a bool scalar: whether all of its logits are finite.
_Probabilities = tuple[list[torch.Tensor], list[torch.Tensor]]


class BoundaryModel:
    """A one-channel segmentation network that gives boundary probabilities as uint8 maps.

    Each image is padded by itself to multiples of ``canvas_step`` pixels (mirrored), the
    logits are upsampled bicubically to that canvas, and the sigmoid times 255, rounded half to
    even, is cropped to the image. With several scales this is done with the image resized to each,
    and the mean of the probabilities is rounded. So a map depends on its image and on the
    configuration, and on the other images of a batch through rounding only.

    Parameters
    ----------
    module : nn.Module
        Called with ``pixel_values`` (N, 3, H, W) float; gives logits (N, 1, h, w), as a tensor or
        as the attribute ``logits``. It is put in eval mode and moved to the device.
    mean, std : tuple of 3 float
        Normalisation of RGB in [0, 1]; ImageNet's by default.
    device : str or torch.device, optional
        Where to run; None leaves the module where its parameters are.
    dtype : {"auto", "float32", "tf32", "bfloat16", "float16"}
        Precision of the network: by autocast on a CPU, of a converted copy on CUDA; the module
        stays as it is. ``"auto"`` takes what is fast on the device, see
        ``subtok_data.devices.compute_dtype``.
    compile : bool, default False
        Run the network through ``torch.compile``: pays after minutes of images of few sizes.
    tile : int, optional
        Side in pixels above which an image is run in overlapping, blended tiles; a multiple of
        ``canvas_step``.
    overlap : int, default 128
        Least overlap of neighbouring tiles in pixels; a multiple of 32, at most half a tile.
    scales : sequence of float, default (1.0,)
        Multiples of the image's size, above 0 and at most 4, in any order: the map is the mean of
        those at these sizes. Time grows with the sum of their squares. Tiles apply to each size.
    canvas_step : int, default 32
        Multiple of 32 to which the sides of an image are padded. Images of equal canvas run
        together on an accelerator, so photos of many sizes make larger batches with 128, for a few
        per cent more pixels; maps differ, most near the lower and the right frame.
    batch_size : int, default 16
        Most images that run together on an accelerator, fewer if its memory asks for it; a CPU
        takes one or two.
    cuda_graphs : bool, default False
        On CUDA, capture the forward of each canvas and number of images when it comes for the
        third time, and replay it from then on: the host queues one operation instead of hundreds.
        Numbers are rounded up to powers of two, with blank images. Not with ``compile``, and not
        for tiles.
    name : str, optional
        For messages; the class of the module by default.

    Examples
    --------
    >>> import numpy as np
    >>> model = BoundaryModel.from_pretrained(device="cpu")
    >>> maps = model.predict([np.zeros((40, 50, 3), np.uint8)])
    >>> maps[0].shape, maps[0].dtype
    ((40, 50), dtype('uint8'))
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        mean: Triple = IMAGENET_NORMALISATION.mean,
        std: Triple = IMAGENET_NORMALISATION.std,
        device: str | torch.device | None = None,
        dtype: Precision = "auto",
        compile: bool = False,
        tile: int | None = None,
        overlap: int = DEFAULT_OVERLAP,
        scales: Sequence[float] = (1.0,),
        canvas_step: int = CANVAS_MULTIPLE,
        batch_size: int = 16,
        cuda_graphs: bool = False,
        name: str | None = None,
    ) -> None:
        self.canvas_step = check_canvas_step(canvas_step)
        check_tiling(tile, overlap, CANVAS_MULTIPLE, canvas_step)
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be at least 1")
        if cuda_graphs and compile:
            raise ConfigError("cuda_graphs=True together with compile=True: give one of them")
        self.cuda_graphs = cuda_graphs
        self.tile = tile
        self.overlap = overlap
        self.scales = check_scales(scales)
        self.batch_size = batch_size
        self._network = BoundaryNetwork(
            module, Normalisation(mean, std), dtype, compile, name or type(module).__name__
        )
        self._lock = threading.RLock()
        self._stream = DeviceStream(torch.device("cpu"))
        self._graphs: ForwardGraphs | None = None
        self._hash: str | None = None
        self._most_pixels: int | None = None  # that run together; known when the first image comes
        if device is None:
            device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self.to(device)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: Precision = "auto",
        compile: bool = False,
        tile: int | Literal["saved"] | None = "saved",
        overlap: int | Literal["saved"] = "saved",
        scales: Sequence[float] | Literal["saved"] = "saved",
        canvas_step: int | Literal["saved"] = "saved",
        batch_size: int = 16,
        cuda_graphs: bool = False,
    ) -> BoundaryModel:
        """Load a model; safetensors only.

        Parameters
        ----------
        name_or_folder : str or path, optional
            None for the packaged weights, a local folder, or a hub id such as
            ``"chendelong/DirectSAM-b0-1024px-sa1b-2ep-1017"`` (EPOC). Any architecture that
            transformers loads for semantic segmentation, with one output channel, or one of this
            library. Mean and std come from ``preprocessor_config.json`` where there is one.
        device : str or torch.device, optional
            None takes a CUDA device if there is one.
        dtype, compile, batch_size, cuda_graphs
            See the class.
        tile, overlap, scales, canvas_step : optional
            See the class; ``"saved"`` takes what :meth:`save_pretrained` wrote.

        Raises
        ------
        WeightsError
            Missing, of another architecture, with several channels, or not in safetensors.

        Examples
        --------
        >>> BoundaryModel.from_pretrained(device="cpu", dtype="float32")
        BoundaryModel('lite1', 3.01 M parameters, device='cpu', dtype='float32')
        """
        loaded = load_network(name_or_folder)
        return cls(
            loaded.module,
            mean=loaded.normalisation.mean,
            std=loaded.normalisation.std,
            device=resolve_device(device),
            dtype=dtype,
            compile=compile,
            tile=loaded.options.tile if tile == "saved" else tile,
            overlap=loaded.options.overlap if overlap == "saved" else overlap,
            scales=loaded.options.scales if scales == "saved" else scales,
            canvas_step=loaded.options.canvas_step if canvas_step == "saved" else canvas_step,
            batch_size=batch_size,
            cuda_graphs=cuda_graphs,
            name=loaded.name,
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write all that decides about a map into a folder for :meth:`from_pretrained`.

        That is the network, its normalisation, tiles, scales and canvas step; device, dtype,
        compilation and batch size are chosen anew where the model is loaded.
        """
        network = self._network
        options = MapOptions(self.tile, self.overlap, self.scales, self.canvas_step)
        save_network(network.module, network.normalisation, Path(folder), options)

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Write the model to a repository of the Hugging Face hub, with a card.

        Parameters
        ----------
        name : str
            ``"user/name"``; created if there is none. ``BoundaryModel.from_pretrained(name)`` and
            ``EPOCSegmenter(name)`` read it.
        **options
            ``private``, ``token``, ``revision``, ``commit_message``, ``create_pr``, as
            ``huggingface_hub`` has them.

        Returns
        -------
        str
            Address of the commit.
        """
        card = model_card(
            "Predicts where objects and their parts end: a boundary probability for each pixel of "
            "an image, from which subobject tokens are made.",
            [
                "from subtok_data import BoundaryModel, EPOCSegmenter, SubobjectTokenizer",
                'boundary_map = BoundaryModel.from_pretrained("{{name}}").predict(image)',
                'tokens = SubobjectTokenizer(EPOCSegmenter("{{name}}"))(image)',
            ],
            {
                "parameters": self.num_parameters,
                "tile": self.tile,
                "overlap": self.overlap,
                "scales": list(self.scales),
                "canvas_step": self.canvas_step,
                "config_hash": self.config_hash,
            },
        )
        return upload_folder(self.save_pretrained, name, card, **options)

    def to(self, device: str | torch.device) -> BoundaryModel:
        """Move to a device, in place; waits for what was launched.

        On CUDA a converted copy of the module runs, with its weights as they are now: after
        training the module, call this again.

        Parameters
        ----------
        device : str or torch.device
            ``"cuda"`` is the current one of the calling thread.

        Raises
        ------
        DeviceError
            An accelerator, inside a DataLoader worker.
        ConfigError
            No such device.
        """
        found = resolve_device(device)
        with self._lock:
            launched = self._stream.record()
            if launched is not None:
                launched.synchronize()
            self._network.to(found)
            if self._stream.device != found:
                self._stream = DeviceStream(found, priority=-1)
            # In the thread that made the weights: they are complete before the stream reads them.
            self._stream.follow_caller()
            self._graphs = None
            if self.cuda_graphs and self._network.is_converted:
                self._graphs = ForwardGraphs(self._network.probabilities, self.name)
            self._most_pixels = None
        return self

    @property
    def name(self) -> str:
        """Hub id, name of the folder, or class of the module."""
        return self._network.name

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._network.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network's products, ``"auto"`` resolved."""
        return self._network.dtype

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(parameter.numel() for parameter in self._network.module.parameters())

    @property
    def config_hash(self) -> str:
        """SHA-256 of all that decides about a map, up to rounding; computed once.

        Architecture, weights (as float32), normalisation, upsampling, tiles, scales and canvas step
        are in it; device, precision and batch size are not. Stored tokens carry it.
        """
        if self._hash is None:
            digest = hashlib.sha256()
            tiling = (self.tile, self.overlap) if self.tile else None
            digest.update(repr((UPSAMPLING, self.canvas_step, tiling)).encode())
            if self.scales != (1.0,):
                digest.update(repr(self.scales).encode())
            self._network.update(digest)
            self._hash = digest.hexdigest()
        return self._hash

    @overload
    def predict(self, images: NDArray[np.uint8] | Image.Image) -> NDArray[np.uint8]: ...

    @overload
    def predict(
        self, images: Iterable[NDArray[np.uint8] | Image.Image]
    ) -> list[NDArray[np.uint8]]: ...

    def predict(
        self,
        images: NDArray[np.uint8] | Image.Image | Iterable[NDArray[np.uint8] | Image.Image],
    ) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """Predict the boundary map of an image, or of each image of a list.

        Parameters
        ----------
        images : uint8 array (H, W, 3), PIL image, or several of them
            RGB, of any sizes. A PIL image of any mode is turned upright and to RGB first. An array
            (N, H, W, 3) is several images.

        Returns
        -------
        uint8 array (H, W), or a list of them
            Probability times 255, at the size of the image: one map for one image, else a list in
            the order of the images.

        Raises
        ------
        ImageError
            An array of another dtype or shape, or a PIL image that cannot be read.
        DeviceError
            The model is on an accelerator and this is a DataLoader worker.
        SubtokError
            The network gave NaN or infinity.
        """
        if isinstance(images, Image.Image):
            return self.predict([images])[0]
        if isinstance(images, np.ndarray) and images.ndim == 3:
            return self.predict([images])[0]
        pixels = [to_rgb(one) if isinstance(one, Image.Image) else one for one in images]
        maps = self.predict_on_device(pixels)
        maps.raise_unless_finite()
        return [boundary.cpu().numpy() for boundary in maps]

    def predict_on_device(self, images: Sequence[Pixels] | Pixels) -> DeviceMaps:
        """Boundary maps that stay on the device; on CUDA, returns before they are computed.

        Work is queued on the current stream, and nothing waits for the device. Pixels on the host
        go up through pinned memory.

        Parameters
        ----------
        images : sequence of uint8 arrays or tensors (H, W, 3)
            As for :meth:`predict`; tensors may be on the device already.

        Returns
        -------
        DeviceMaps
            A list of contiguous uint8 tensors (H, W), with ``finite`` to be checked later.

        Raises
        ------
        DeviceMemoryError
            The device's memory does not hold what one image needs; images that do not fit together
            run in halves.
        """
        refuse_in_worker(self.device)
        return self._maps(checked(images), self._network.probabilities)

    def _maps(self, found: list[Pixels], forward: _Forward) -> DeviceMaps:
        # What leaves here may be used in autograd later, even if the caller is in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            if self.scales == (1.0,):
                means, good = self._probabilities(found, forward)
            else:
                means, good = self._mean_over_scales(found, forward)
            maps = [one.mul(255).round_().to(torch.uint8) for one in means]
            finite = torch.stack(good) if good else torch.empty(0, dtype=torch.bool)
        return DeviceMaps(maps, finite.to(self.device), self.name)

    def launch(self, images: Sequence[Pixels] | Pixels) -> PendingMaps:
        """Start :meth:`predict` on the model's own CUDA stream, copies included; wait for nothing.

        On a CPU the maps are computed before this returns.

        Parameters
        ----------
        images : sequence of uint8 arrays or tensors (H, W, 3)
            As for :meth:`predict_on_device`.

        Returns
        -------
        PendingMaps
            ``result()`` waits, and tells of each image whether its logits were finite.
        """
        refuse_in_worker(self.device)
        found = checked(images)
        with self._lock, _current(self.device):
            placed = [one for one in found if isinstance(one, torch.Tensor) and one.is_cuda]
            if placed:  # they may still be in the making, and be gone when their turn comes
                self._stream.follow_caller()
            with self._stream.entered():
                for one in placed:
                    one.record_stream(torch.cuda.current_stream())
                forward = self._network.probabilities if self._graphs is None else self._graphs
                return PendingMaps(self._maps(found, forward))

    def _mean_over_scales(self, images: list[Pixels], forward: _Forward) -> _Probabilities:
        """Mean over the scales of the probabilities of each image; finite if all scales are."""
        count = len(images)
        sizes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
        scaled_sizes = [
            [scaled_size(size, scale, index, count) for index, size in enumerate(sizes)]
            for scale in self.scales
        ]
        # One by one, as their own canvas: pixels go up once, and are resized on the device.
        placed = [
            stack([image], size, self.device)[0] for image, size in zip(images, sizes, strict=True)
        ]
        totals = [torch.zeros(size, device=self.device) for size in sizes]
        finite = [torch.ones((), dtype=torch.bool, device=self.device) for _ in sizes]
        for wanted in scaled_sizes:
            resized: list[Pixels] = [
                image if size == goal else scaled_image(image, goal)
                for image, size, goal in zip(placed, sizes, wanted, strict=True)
            ]
            for total, all_good, found, good in zip(
                totals, finite, *self._probabilities(resized, forward), strict=True
            ):
                total += resized_map(found, (total.shape[0], total.shape[1]))
                all_good &= good
        return [total.div_(len(self.scales)) for total in totals], finite

    def _probabilities(self, images: list[Pixels], forward: _Forward) -> _Probabilities:
        """Probabilities of each image as it is."""
        found: list[torch.Tensor] = [torch.empty(0)] * len(images)
        finite = list(found)
        for canvas, members in group(images, self.canvas_step).items():
            plan = self._plan(canvas)
            together = self._batch_length(canvas if plan is None else plan.tile)
            for chunk in balanced(members, together if plan is None else 1):
                part = [images[at] for at in chunk]
                rows, good = self._run(part, canvas, plan, together, forward)
                for row, at in enumerate(chunk):
                    height, width = images[at].shape[:2]
                    found[at] = rows[row][:height, :width]
                    finite[at] = good[row]
        return found, finite

    def _run(
        self,
        images: list[Pixels],
        canvas: tuple[int, int],
        plan: TilePlan | None,
        together: int,
        forward: _Forward,
    ) -> _Probabilities:
        """Probabilities of the canvas of each image; in halves if memory does not hold them all.

        ``together`` is how many canvases, or tiles of one, run in a forward.
        """
        try:
            pixels = stack(images, canvas, self.device)
            if plan is None:
                rows, good = forward(pixels)
            else:
                rows, good = self._network.probabilities(pixels, plan, together)
        except torch.OutOfMemoryError as error:
            reason = str(error)
        else:
            return list(rows), list(good)
        # Only here has the failed attempt, which the exception kept alive, given its memory back.
        failed, sides = (len(images), canvas) if plan is None else (together, plan.tile)
        if failed == 1:
            raise self._memory_error(images[0], canvas, plan, reason)
        half = failed // 2
        self._most_pixels = half * sides[0] * sides[1]  # the next batch does not try again
        if plan is not None:
            return self._run(images, canvas, plan, half, forward)
        found: _Probabilities = ([], [])
        for part in balanced(range(failed), half):
            rows, good = self._run([images[at] for at in part], canvas, None, half, forward)
            found[0].extend(rows)
            found[1].extend(good)
        return found

    def _memory_error(
        self, image: Pixels, canvas: tuple[int, int], plan: TilePlan | None, reason: str
    ) -> DeviceMemoryError:
        height, width = image.shape[:2]
        remedy = "tile=512, say" if self.tile is None else "a smaller tile"
        alone = "this image" if plan is None else "one tile of this image"
        return DeviceMemoryError(
            f"boundary model {self.name!r} on {str(self.device)!r}: no memory for an image of "
            f"{height} x {width} pixels (height x width; canvas {canvas[0]} x {canvas[1]}, "
            f"tile={self.tile}). Already {alone} alone does not fit: batch_size="
            f"{self.batch_size} is not to blame. Give the tokenizer a smaller size, the model "
            f"{remedy}, or free memory of the device. Torch says: {reason}"
        )

    def _plan(self, canvas: tuple[int, int]) -> TilePlan | None:
        if self.tile is None or max(canvas) <= self.tile:
            return None
        return plan_tiles(canvas, self.tile, self.overlap, CANVAS_MULTIPLE)

    def _batch_length(self, canvas: tuple[int, int]) -> int:
        """Canvases that run together."""
        if self.device.type == "cpu":
            return min(self.batch_size, self._network.cpu_batch)
        if self._most_pixels is None:
            self._most_pixels = max(
                self.batch_size * _BATCH_SIDE**2, _free_memory(self.device) // _BYTES_A_PIXEL
            )
        length = max(1, min(self.batch_size, self._most_pixels // (canvas[0] * canvas[1])))
        # A graph's number of images is a power of two: one for which there is room.
        return length if self._graphs is None else 1 << (length.bit_length() - 1)

    def __getstate__(self) -> dict[str, Any]:
        refuse_to_pickle(self, self.device)
        own = {name: value for name, value in self.__dict__.items() if name != "_lock"}
        return {**own, "_hash": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        tiling = f", tile={self.tile}, overlap={self.overlap}" if self.tile else ""
        scales = f", scales={self.scales}" if self.scales != (1.0,) else ""
        coarse = self.canvas_step != CANVAS_MULTIPLE
        step = f", canvas_step={self.canvas_step}" if coarse else ""
        dtype = str(self._network.dtype).removeprefix("torch.")
        return (
            f"BoundaryModel({self.name!r}, {self.num_parameters / 1e6:.2f} M parameters, "
            f"device={str(self.device)!r}, dtype={dtype!r}{tiling}{scales}{step})"
        )


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a CUDA device current: to leave one of its streams would make another one current."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _free_memory(device: torch.device) -> int:
    """Free bytes of a CUDA device; 0 for any other, whose memory is not asked."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
