"""Segmenters: what joins evidence from a device with a partition made on the CPU.

Every way of cutting an image into tokens is the same two steps. ``infer`` runs batched, in the main
process, where the device is, and gives named numpy arrays per image; the ``partitioner`` turns them
into a :class:`~subtok_data.segment.partition.Partition` in worker processes that never import
torch. Budget, order, batch, loader and benchmarks know only this protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from subtok_data.boundary.model import BoundaryModel
from subtok_data.errors import ConfigError
from subtok_data.segment.flooding import Backend
from subtok_data.segment.grid import GridPartitioner
from subtok_data.segment.partition import Partitioner
from subtok_data.segment.superpixels import Method, SuperpixelPartitioner
from subtok_data.segment.watershed import DEFAULT_THRESHOLD, WatershedPartitioner

__all__ = [
    "SEGMENTERS",
    "EPOCSegmenter",
    "Evidence",
    "Launch",
    "LaunchingSegmenter",
    "PatchSegmenter",
    "Segmenter",
    "SuperpixelSegmenter",
]

Evidence = Mapping[str, NDArray[Any]]
Images = Sequence[NDArray[np.uint8]]
Sizes = Sequence[tuple[int, int]]


@runtime_checkable
class Segmenter(Protocol):
    """A way of cutting images into tokens.

    Attributes
    ----------
    partitioner : Partitioner
        Picklable, from a module that imports no torch: it runs in worker processes.
    """

    @property
    def partitioner(self) -> Partitioner:
        """What turns evidence into a partition."""
        ...

    def infer(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> list[Evidence]:
        """Return named arrays for each image.

        Parameters
        ----------
        images : sequence of (H, W, 3) uint8 arrays
            May differ in size.
        sizes : sequence of (int, int)
            Height and width of each image.
        prompts : sequence, optional
            One entry per image, for segmenters that take prompts.
        """
        ...


class Launch(Protocol):
    """Inference under way on a device."""

    def result(self) -> list[Evidence]:
        """Wait for the device and return the evidence of each image."""
        ...


@runtime_checkable
class LaunchingSegmenter(Segmenter, Protocol):
    """A segmenter whose inference runs beside the host."""

    @property
    def is_asynchronous(self) -> bool:
        """Whether ``launch`` returns before the work is done."""
        ...

    def launch(self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None) -> Launch:
        """Start inference and return at once."""
        ...


def _refuse_prompts(segmenter: object, prompts: Sequence[Any] | None) -> None:
    if prompts is not None and any(prompt is not None for prompt in prompts):
        raise ConfigError(
            f"{type(segmenter).__name__} takes no prompts, got {len(prompts)}; "
            "use a segmenter for prompted regions, or leave prompts out"
        )


class EPOCSegmenter:
    """Boundary model, then seeded watershed: subobject tokens (EPOC, arXiv 2402.14327, section 3).

    Parameters
    ----------
    model : BoundaryModel, str, Path or None, optional
        A model, a folder, or a hub id. None means the packaged weights, loaded at first use.
    threshold : float, optional
        Seeds are the connected parts with a boundary probability below this, in (0, 1). A higher
        threshold joins seeds, and adds some where no pixel was below the lower one, so the count
        may go either way. ``DEFAULT_THRESHOLD`` if not given.
    backend : {"numba", "skimage"}, optional
        Which flood; the tokens are the same.
    device : str or torch.device, optional
        Where the model runs; None picks a CUDA device if there is one.

    Examples
    --------
    >>> from subtok_data import EPOCSegmenter, SubobjectTokenizer
    >>> tokenizer = SubobjectTokenizer(EPOCSegmenter(threshold=0.3))
    """

    name: ClassVar[str] = "epoc"

    def __init__(
        self,
        model: BoundaryModel | str | Path | None = None,
        *,
        threshold: float | None = None,
        backend: Backend = "numba",
        device: str | torch.device | None = None,
    ) -> None:
        self.partitioner = WatershedPartitioner(
            threshold=DEFAULT_THRESHOLD if threshold is None else threshold, backend=backend
        )
        self.device = device
        self._model = model

    @property
    def model(self) -> BoundaryModel:
        """The boundary model, loaded on first use."""
        if not isinstance(self._model, BoundaryModel):
            self._model = BoundaryModel.from_pretrained(self._model, device=self.device)
        return self._model

    @property
    def is_asynchronous(self) -> bool:
        """True on CUDA devices."""
        return self.model.device.type == "cuda"

    def to(self, device: str | torch.device) -> EPOCSegmenter:
        """Move the model to a device."""
        self.device = device
        if isinstance(self._model, BoundaryModel):
            self._model.to(device)
        return self

    def infer(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> list[Evidence]:
        """Return ``{"boundary_map": (H, W) uint8}`` for each image; see :class:`Segmenter`."""
        del sizes
        _refuse_prompts(self, prompts)
        return [{"boundary_map": boundary} for boundary in self.model.predict(images)]

    def launch(self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None) -> Launch:
        """Start inference on the model's own stream; see :class:`LaunchingSegmenter`."""
        del sizes
        _refuse_prompts(self, prompts)
        return _BoundaryLaunch(self.model, images)

    def config(self) -> dict[str, Any]:
        """Options and the identity of the weights, as JSON values."""
        return {
            "segmenter": self.name,
            "partitioner": _partitioner_config(self.partitioner),
            "model": self.model.config_hash,
        }

    def save_model(self, folder: Path) -> None:
        """Write the weights below ``folder``."""
        self.model.save_pretrained(folder / "boundary_model")

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], folder: Path, device: str | torch.device | None
    ) -> EPOCSegmenter:
        """Build from what :meth:`config` and :meth:`save_model` wrote."""
        options = config["partitioner"]
        return cls(
            folder / "boundary_model",
            threshold=options["threshold"],
            backend=options["backend"],
            device=device,
        )


class _BoundaryLaunch:
    """Boundary maps on their way from a CUDA device into pinned memory."""

    def __init__(self, model: BoundaryModel, images: Images) -> None:
        self._stream = model.stream
        with torch.cuda.stream(self._stream):
            self._device_maps = model.predict_on_device(images)
            # torch keeps pinned blocks for reuse: after a few batches this allocates nothing.
            self._host_maps = [
                torch.empty(boundary.shape, dtype=torch.uint8, pin_memory=True)
                for boundary in self._device_maps
            ]
            for host, boundary in zip(self._host_maps, self._device_maps, strict=True):
                host.copy_(boundary, non_blocking=True)
            flags = self._device_maps.finite
            self._host_finite = torch.empty(flags.shape, dtype=torch.bool, pin_memory=True)
            self._host_finite.copy_(flags, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(self._stream)

    def result(self) -> list[Evidence]:
        """Wait for the copies and return the maps."""
        self._done.synchronize()
        self._device_maps.raise_unless_finite(self._host_finite)
        # Only now may the device memory be reused by other streams.
        self._device_maps.clear()
        return [{"boundary_map": host.numpy()} for host in self._host_maps]


class _HostSegmenter:
    """Segmenters that need no device: the evidence is the image, or nothing."""

    name: ClassVar[str]
    needs_image: ClassVar[bool]
    partitioner: Partitioner

    def infer(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> list[Evidence]:
        """Return ``{"image": (H, W, 3) uint8}`` or nothing for each; see :class:`Segmenter`."""
        _refuse_prompts(self, prompts)
        if self.needs_image:
            return [{"image": image} for image in images]
        return [{} for _ in sizes]

    def config(self) -> dict[str, Any]:
        """Options as JSON values."""
        return {"segmenter": self.name, "partitioner": _partitioner_config(self.partitioner)}

    def save_model(self, folder: Path) -> None:
        """Write nothing: there are no weights."""


class PatchSegmenter(_HostSegmenter):
    """A grid of patches that covers every pixel, also when the side does not divide.

    Parameters
    ----------
    patch_size : int, optional
        Side of a patch in pixels; the patches at the right and bottom may be smaller.

    Examples
    --------
    >>> import numpy as np
    >>> from subtok_data import PatchSegmenter, SubobjectTokenizer
    >>> tokenizer = SubobjectTokenizer(PatchSegmenter(patch_size=16), size=None)
    >>> tokenizer(np.zeros((40, 48, 3), np.uint8)).num_tokens
    9
    """

    name: ClassVar[str] = "patch"
    needs_image: ClassVar[bool] = False

    def __init__(self, patch_size: int = 32) -> None:
        self.partitioner = GridPartitioner(patch=patch_size)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], folder: Path, device: str | torch.device | None
    ) -> PatchSegmenter:
        """Build from what :meth:`config` wrote."""
        del folder, device
        return cls(config["partitioner"]["patch"])


class SuperpixelSegmenter(_HostSegmenter):
    """Superpixels of scikit-image as tokens: SLIC or Felzenszwalb.

    Parameters
    ----------
    method : {"slic", "felzenszwalb"}, optional
        Algorithm.
    n_segments : int, optional
        About how many tokens; the methods do not hit it exactly, ``num_tokens`` of the tokenizer
        does.

    Examples
    --------
    >>> from subtok_data import SubobjectTokenizer, SuperpixelSegmenter
    >>> tokenizer = SubobjectTokenizer(SuperpixelSegmenter("slic", n_segments=100))
    """

    name: ClassVar[str] = "superpixel"
    needs_image: ClassVar[bool] = True

    def __init__(self, method: Method = "slic", *, n_segments: int = 100) -> None:
        self.partitioner = SuperpixelPartitioner(method=method, n_segments=n_segments)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], folder: Path, device: str | torch.device | None
    ) -> SuperpixelSegmenter:
        """Build from what :meth:`config` wrote."""
        del folder, device
        return cls(config["partitioner"]["method"], n_segments=config["partitioner"]["n_segments"])


def _partitioner_config(partitioner: object) -> dict[str, Any]:
    import dataclasses

    options = dataclasses.asdict(cast(Any, partitioner))
    return {name: value for name, value in options.items() if value is not None}


SEGMENTERS: dict[str, Any] = {
    cls.name: cls for cls in (EPOCSegmenter, PatchSegmenter, SuperpixelSegmenter)
}
"""Segmenters by the name that stands in a saved configuration."""
