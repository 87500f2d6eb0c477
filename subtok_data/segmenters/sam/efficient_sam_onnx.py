"""EfficientSAM's official ONNX files, run by onnxruntime."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subtok_data.devices import resolve_device
from subtok_data.errors import PromptError, WeightsError
from subtok_data.segmenters.sam.efficient_sam_torchscript import (
    GRID,
    WANTED,
    copy_file,
    files_digest,
)

__all__ = ["ONNXFiles"]

_DECODER_INPUTS = (
    "image_embeddings",
    "batched_point_coords",
    "batched_point_labels",
    "orig_im_size",
)


class ONNXFiles:
    """The official ONNX files, run by onnxruntime.

    The official decoder takes one prompt a call; one exported with a free number of prompts takes
    as many as it gets.

    Parameters
    ----------
    encoder, decoder : Path
        The two files.
    device : torch.device
        CUDA is used if onnxruntime was built for it.

    Raises
    ------
    WeightsError
        Other files, or onnxruntime is not installed.
    """

    def __init__(self, encoder: Path, decoder: Path, device: torch.device) -> None:
        self.files = (encoder, decoder)
        self.to(device)

    def to(self, device: str | torch.device) -> None:
        """Open the files for a device."""
        self.device = resolve_device(device)
        encoder, decoder = self.files
        self._encoder = _session(encoder, self.device)
        self._decoder = _session(decoder, self.device)
        for session, file, wanted in (
            (self._encoder, encoder, ("batched_images",)),
            (self._decoder, decoder, _DECODER_INPUTS),
        ):
            names = tuple(value.name for value in session.get_inputs())
            if set(names) != set(wanted):
                raise WeightsError(
                    f"{str(file)!r} has the inputs {', '.join(names)}, expected "
                    f"{', '.join(wanted)}; {WANTED}"
                )
        shapes = {value.name: value.shape for value in self._decoder.get_inputs()}
        _, queries, points, _ = shapes["batched_point_coords"]
        # Free sides have a name in place of a number.
        self._queries = queries if isinstance(queries, int) else None
        self._points = points if isinstance(points, int) else None

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed images; see :class:`EfficientSAMFiles`."""
        outputs = self._encoder.run(None, {"batched_images": pixels.cpu().numpy()})
        return torch.from_numpy(outputs[0])

    def predict(self, embedding: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and predicted IoU; see :class:`EfficientSAMFiles`."""
        fixed = {"image_embeddings": embedding.numpy(), "orig_im_size": np.array([GRID, GRID])}
        step = self._queries or len(points)
        logits: list[NDArray[np.float32]] = []
        ious: list[NDArray[np.float32]] = []
        for start in range(0, len(points), step):
            count = min(step, len(points) - start)
            # An export for several prompts a call wants as many: the last one fills up.
            rows = np.minimum(np.arange(start, start + step), len(points) - 1)
            prompts = {
                "batched_point_coords": points.numpy()[None, rows],
                "batched_point_labels": labels.numpy()[None, rows].astype(np.float32),
            }
            outputs = self._decoder.run(None, {**fixed, **prompts})
            # The third output is what the model made; the first is scaled to the image.
            low = outputs[2] if len(outputs) > 2 else outputs[0]
            logits.append(low.reshape(step, -1, *low.shape[-2:])[:count])
            ious.append(outputs[1].reshape(step, -1)[:count])
        return (
            torch.from_numpy(np.concatenate(logits)).to(self.device),
            torch.from_numpy(np.concatenate(ious)).to(self.device),
        )

    def check(self, num_points: int) -> None:
        """Raise PromptError if the decoder was exported for another number of points."""
        if self._points is not None and self._points != num_points:
            raise PromptError(
                f"a prompt of {num_points} points (a box has 2): {str(self.files[1])!r} was "
                f"exported for {self._points}; export it with a free number of points"
            )

    def identity(self) -> str:
        """Return the SHA-256 of the files."""
        return files_digest(*self.files)

    def save(self, folder: Path) -> None:
        """Copy the files."""
        for file, part in zip(self.files, ("encoder", "decoder"), strict=True):
            copy_file(file, folder / f"efficient_sam_{part}.onnx")


def _session(file: Path, device: torch.device) -> Any:
    try:
        runtime: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise WeightsError(
            f"{str(file)!r} needs the package onnxruntime: pip install subtok-data[onnx]"
        ) from error
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index}))
    try:
        return runtime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # onnxruntime has exception classes of its own, not exported
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(
            f"{str(file)!r} cannot be loaded by onnxruntime: {reason}; {WANTED}"
        ) from error
