"""EfficientSAM's official files: what they have to do, and the TorchScript one."""

from __future__ import annotations

import hashlib
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from subtok_data.device_streams import send_to
from subtok_data.devices import resolve_device
from subtok_data.errors import WeightsError

__all__ = ["GRID", "WANTED", "EfficientSAMFiles", "TorchScriptFile", "copy_file", "files_digest"]

GRID = 256
"""Side of the square that points are given in; both forms of the model scale them to their own."""

WANTED = (
    "expected the official TorchScript file (efficient_sam_vitt_torchscript.pt), or the ONNX files "
    "…_encoder.onnx and …_decoder.onnx, or a folder that holds either"
)
"""What messages about wrong files ask for."""


class EfficientSAMFiles(Protocol):
    """Encoder and mask decoder, as the official files have them."""

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        ...

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed (B, 3, H, W) float32 images, 0 to 1; they are stretched to the model's square."""
        ...

    def predict(self, embedding: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (Q, 3, h, w) and predicted IoU (Q, 3) of one image.

        ``points`` (Q, K, 2) are x, y on a square of side ``GRID``; ``labels`` (Q, K) are 1 for a
        point inside, 2 and 3 for the corners of a box.
        """
        ...

    def check(self, num_points: int) -> None:
        """Raise PromptError for a number of points that the files do not take."""
        ...

    def to(self, device: str | torch.device) -> None:
        """Move the model to a device."""
        ...

    def identity(self) -> str:
        """Return the SHA-256 of the files."""
        ...

    def save(self, folder: Path) -> None:
        """Copy the files."""
        ...


class TorchScriptFile:
    """The official TorchScript file.

    TorchScript holds the network's code beside its weights. That code is not Python, so loading it
    runs nothing, but running the model runs it: load files that you trust.

    Parameters
    ----------
    file : Path
        With the exported methods ``get_image_embeddings`` and ``predict_masks``.
    device : torch.device
        Where it runs.

    Raises
    ------
    WeightsError
        Another kind of file.
    """

    def __init__(self, file: Path, device: torch.device) -> None:
        self.file = file
        self.device = resolve_device(device)
        if not zipfile.is_zipfile(file):
            raise WeightsError(f"{str(file)!r} is no TorchScript file; {WANTED}")
        with zipfile.ZipFile(file) as archive:
            has_code = any("/code/" in name for name in archive.namelist())
        if not has_code:
            raise WeightsError(
                f"{str(file)!r} holds pickled weights without a network, which are not loaded; "
                f"{WANTED}"
            )
        try:
            with warnings.catch_warnings():
                # Deprecated in favour of torch.export, but this is the form the file comes in.
                warnings.filterwarnings("ignore", ".*torch.jit.load.*", FutureWarning)
                warnings.filterwarnings("ignore", ".*torch.jit.load.*", DeprecationWarning)
                self._module: Any = torch.jit.load(str(file), map_location=self.device).eval()
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            raise WeightsError(
                f"{str(file)!r} cannot be loaded by torch.jit.load: {reason}; {WANTED}"
            ) from error
        # TorchScript compiles a method for gradients when it first runs where they are wanted, and
        # what it compiled then raises in inference mode.
        for parameter in self._module.parameters():
            parameter.requires_grad_(False)
        lacking = [
            name
            for name in ("get_image_embeddings", "predict_masks")
            if not hasattr(self._module, name)
        ]
        if lacking:
            raise WeightsError(
                f"{str(file)!r} is a TorchScript file of another model: it has no method "
                f"{' or '.join(lacking)}; {WANTED}"
            )

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed images; see :class:`EfficientSAMFiles`."""
        return self._module.get_image_embeddings(send_to(pixels, self.device))

    def predict(self, embedding: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and predicted IoU; see :class:`EfficientSAMFiles`."""
        logits, ious = self._module.predict_masks(
            embedding,
            send_to(points[None], self.device),
            send_to(labels[None], self.device),
            True,
            GRID,
            GRID,
            -1,
            -1,
        )
        return logits[0].float(), ious[0].float()

    def check(self, num_points: int) -> None:
        """Accept any number: the decoder holds the limit of the model itself."""

    def to(self, device: str | torch.device) -> None:
        """Move the model to a device."""
        self.device = resolve_device(device)
        self._module.to(self.device)

    def identity(self) -> str:
        """Return the SHA-256 of the file."""
        return files_digest(self.file)

    def save(self, folder: Path) -> None:
        """Copy the file."""
        copy_file(self.file, folder / "efficient_sam_torchscript.pt")


def files_digest(*files: Path) -> str:
    """Return one SHA-256 of the contents of files.

    Examples
    --------
    >>> len(files_digest())
    64
    """
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def copy_file(source: Path, target: Path) -> None:
    """Copy a file to where it may be already."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not (target.exists() and target.samefile(source)):
        shutil.copyfile(source, target)
