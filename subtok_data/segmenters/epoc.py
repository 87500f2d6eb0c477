"""The default segmenter: boundary model, then seeded watershed."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from subtok_data.arguments import check_type
from subtok_data.boundary import BoundaryModel, PendingMaps
from subtok_data.devices import check_device, refuse_to_pickle, resolve_device
from subtok_data.segment import Backend, WatershedPartitioner
from subtok_data.segmenters.base import (
    Evidence,
    Images,
    PendingInference,
    Segmenter,
    Sizes,
    partitioner_config,
    refuse_prompts,
)

__all__ = ["EPOCSegmenter"]

# Threads that need a model at the same time load one. Not the segmenter's: locks are not pickled.
_LOADING = threading.Lock()
_MODEL_REMEDY = "wrap a network of your own in BoundaryModel(network)"


class EPOCSegmenter(Segmenter):
    """Boundary model, then seeded watershed: subobject tokens (EPOC, arXiv 2402.14327, section 3).

    Parameters
    ----------
    model : BoundaryModel, str, Path or None, optional
        A model, a folder, or a hub id. None means the packaged weights, loaded at first use.
    threshold : float, optional
        Seeds are the connected parts with a boundary probability below this, in (0, 1), as in the
        paper, which takes 0.1. A higher threshold joins seeds, and adds some where no pixel was
        below the lower one, so the count may go either way. Not together with ``num_tokens`` or
        ``strength`` of the tokenizer. Without any of the three, tokens are those of
        ``default_strength``.
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
    default_strength: float | None = 0.4
    """Without a threshold: half of 776 photos have 70 tokens or more at the default size."""
    default_min_area: int = 64
    """On photos at the default size, tokens below it follow texture rather than things."""

    def __init__(
        self,
        model: BoundaryModel | str | Path | None = None,
        *,
        threshold: float | None = None,
        backend: Backend = "numba",
        device: str | torch.device | None = None,
    ) -> None:
        self.partitioner = WatershedPartitioner(threshold=threshold, backend=backend)
        if threshold is not None:
            self.default_strength = None
        if model is not None and not isinstance(model, BoundaryModel):
            check_type(
                "model", model, (str, Path), _MODEL_REMEDY, noun="a BoundaryModel, folder or hub id"
            )
        if device is not None:
            check_device(device)
        self._device = device
        self._source = model
        self._model = model

    @property
    def model(self) -> BoundaryModel:
        """The boundary model, loaded on first use."""
        with _LOADING:
            if not isinstance(self._model, BoundaryModel):
                self._model = BoundaryModel.from_pretrained(self._model, device=self._device)
            return self._model

    @property
    def device(self) -> torch.device:
        """Where the model runs, or is going to."""
        if isinstance(self._model, BoundaryModel):
            return self._model.device
        return resolve_device(self._device)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model."""
        return self.model.dtype

    @property
    def is_asynchronous(self) -> bool:
        """True on CUDA devices."""
        return self.device.type == "cuda"

    def load(self) -> None:
        """Load the model now."""
        _ = self.model

    def to(self, device: str | torch.device) -> Self:
        """Move the model to a device; ``"cuda"`` is the current one of the caller."""
        self._device = resolve_device(device)
        if isinstance(self._model, BoundaryModel):
            self._model.to(self._device)
        return self

    def infer(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> list[Evidence]:
        """Return ``{"boundary_map": (H, W) uint8}`` for each image; see :class:`Segmenter`."""
        del sizes
        refuse_prompts(self, prompts)
        return [{"boundary_map": boundary} for boundary in self.model.predict(images)]

    def launch(
        self, images: Images, sizes: Sizes, prompts: Sequence[Any] | None = None
    ) -> PendingInference:
        """Start inference on the model's own stream; see :class:`Segmenter`."""
        del sizes
        refuse_prompts(self, prompts)
        return _BoundaryLaunch(self.model.launch(images))

    def __getstate__(self) -> dict[str, Any]:
        # Without what was loaded: equal before and after the first use, for datasets' fingerprints.
        if self._model is not self._source and isinstance(self._model, BoundaryModel):
            refuse_to_pickle(self._model, self._model.device)
            return {**self.__dict__, "_model": self._source}
        return self.__dict__

    def _described(self) -> list[str]:
        model = self._model
        if isinstance(model, BoundaryModel):
            return [repr(model)]
        where = [] if self._device is None else [f"device={str(self._device)!r}"]
        return ["packaged weights" if model is None else repr(str(model)), *where]

    def config(self) -> dict[str, Any]:
        """Options and the identity of the weights, as JSON values."""
        return {
            "segmenter": self.name,
            "partitioner": partitioner_config(self.partitioner),
            "model": self.model.config_hash,
        }

    def save_model(self, folder: Path) -> None:
        """Write the weights below ``folder``."""
        self.model.save_pretrained(folder / "boundary_model")

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], folder: Path, device: str | torch.device | None
    ) -> Self:
        """Build from what :meth:`config` and :meth:`save_model` wrote."""
        options = config["partitioner"]
        return cls(
            folder / "boundary_model",
            threshold=options.get("threshold"),
            backend=options["backend"],
            device=device,
        )


class _BoundaryLaunch:
    """Boundary maps on their way from the device."""

    def __init__(self, maps: PendingMaps) -> None:
        self._maps = maps

    def result(self) -> Sequence[Evidence | Exception]:
        """Wait for the copy and return the map of each image, or why it has none."""
        return [
            found if isinstance(found, Exception) else {"boundary_map": found}
            for found in self._maps.result()
        ]
