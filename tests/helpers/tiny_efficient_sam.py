"""A small network with EfficientSAM's interface, saved as the official exports save theirs."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 64
MAX_POINTS = 6


class TinyEfficientSAM(nn.Module):
    """Pictures of 64² in cells of 4²; masks of 64²."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width = width
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.mix = nn.Conv2d(width, width, 5, padding=2)
        self.frequencies = nn.Parameter(torch.randn(2, width // 2))
        self.kinds = nn.Parameter(torch.randn(4, width))  # none, point, two corners
        self.masks = nn.Parameter(torch.randn(3, width))
        self.register_buffer("reach", torch.tensor([2.0, 4.0, 6.0])[:, None])
        self.score = nn.Linear(width, 3)
        self.up = nn.ConvTranspose2d(width, width, 4, stride=4)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.5)

    def places(self, points: Tensor) -> Tensor:
        angles = 2 * math.pi * ((2 * (points + 0.5) / 64 - 1) @ self.frequencies)
        return torch.cat([angles.sin(), angles.cos()], -1)

    @torch.jit.export
    def get_image_embeddings(self, batched_images: Tensor) -> Tensor:
        stretched = functional.interpolate(batched_images, (64, 64), mode="bilinear")
        return torch.tanh(self.mix(torch.relu(self.patches(stretched * 4 - 2))))

    def prompts(self, points: Tensor, labels: Tensor) -> Tensor:
        """One vector for each prompt; label 0 is as good as no label."""
        embedded = self.places(points)
        kind = labels.unsqueeze(-1)
        embedded = embedded + torch.where(kind == -1, self.kinds[0], 0 * self.kinds[0])
        embedded = embedded + torch.where(kind == 1, self.kinds[1], 0 * self.kinds[1])
        embedded = embedded + torch.where(kind == 2, self.kinds[2], 0 * self.kinds[2])
        embedded = embedded + torch.where(kind == 3, self.kinds[3], 0 * self.kinds[3])
        return torch.tanh(embedded.sum(2))

    def low_masks(
        self, image_embeddings: Tensor, points: Tensor, prompts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Masks (B Q, 3, 64, 64), near their first point, and scores (B, Q, 3).

        As in the model proper, each prompt has its own copy of the embedding.
        """
        copies = image_embeddings[:, None] * prompts[..., None, None]
        raised = self.up(copies.flatten(0, 1)).flatten(2)  # (B Q, C, 64²)
        steps = torch.arange(64) + 0.5
        rows = (steps[:, None] - points[:, :, :1, None, 1]) ** 2  # (B, Q, 64, 1)
        columns = (steps[None] - points[:, :, :1, None, 0]) ** 2
        near = 4 - (rows + columns).sqrt().flatten(0, 1).flatten(1)[:, None] / self.reach
        masks = (self.masks @ raised / self.width + near).unflatten(2, (64, 64))
        scores = self.score(copies.mean((3, 4)))
        return masks, scores

    def fill(self, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        points, labels = points[:, :, :6], labels[:, :, :6]
        lacking = 6 - points.shape[2]
        points = functional.pad(points, (0, 0, 0, lacking), value=-1.0)
        return points, functional.pad(labels, (0, lacking), value=-1.0)

    @torch.jit.export
    def predict_masks(
        self,
        image_embeddings: Tensor,
        batched_points: Tensor,
        batched_point_labels: Tensor,
        multimask_output: bool,
        input_h: int,
        input_w: int,
        output_h: int = -1,
        output_w: int = -1,
    ) -> tuple[Tensor, Tensor]:
        x = torch.where(batched_points[..., 0] >= 0, batched_points[..., 0] * 64 / input_w, -1.0)
        y = torch.where(batched_points[..., 1] >= 0, batched_points[..., 1] * 64 / input_h, -1.0)
        points, labels = self.fill(torch.stack([x, y], -1), batched_point_labels)
        masks, scores = self.low_masks(image_embeddings, points, self.prompts(points, labels))
        masks = masks.unflatten(0, (points.shape[0], points.shape[1]))
        if not multimask_output:
            masks, scores = masks[:, :, :1], scores[:, :, :1]
        if output_h > 0 and output_w > 0:
            flat = functional.interpolate(masks.flatten(0, 1), (output_h, output_w), mode="bicubic")
            masks = flat.unflatten(0, (masks.shape[0], masks.shape[1]))
        return masks, scores

    def forward(self, images: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = self.get_image_embeddings(images)
        height, width = images.shape[2], images.shape[3]
        return self.predict_masks(embeddings, points, labels, True, height, width, height, width)


class Encoder(nn.Module):
    def __init__(self, model: TinyEfficientSAM) -> None:
        super().__init__()
        self.model = model

    def forward(self, batched_images: Tensor) -> Tensor:
        return self.model.get_image_embeddings(batched_images)


class Decoder(nn.Module):
    """As the official export: no test of negative coordinates, masks of the picture's size too."""

    def __init__(self, model: TinyEfficientSAM, scales: bool) -> None:
        super().__init__()
        self.model = model
        self.scales = scales

    def forward(
        self, image_embeddings: Tensor, points: Tensor, labels: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        scale = 64 / torch.stack([size[1], size[0]]).float()
        points, labels = self.model.fill(points * scale, labels)
        prompts = self.model.prompts(points, labels)
        low, scores = self.model.low_masks(image_embeddings, points, prompts)
        large = low  # the exporter cannot scale a free number of masks
        if self.scales:
            large = functional.interpolate(low, (size[0], size[1]), mode="bilinear")
        return large[None], scores, low


def make_model(seed: int = 0) -> TinyEfficientSAM:
    torch.manual_seed(seed)
    return TinyEfficientSAM().eval()


def save_torchscript(model: TinyEfficientSAM, file: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated, the files are not
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(model), str(file))
    return file


def save_onnx(model: TinyEfficientSAM, folder: Path, *, queries: int | None = 1) -> Path:
    """Write encoder and decoder; ``queries=None`` leaves their number open."""
    points = torch.rand(1, queries or 2, 5, 2) * 64
    labels = torch.ones(1, queries or 2, 5)
    embedding = model.get_image_embeddings(torch.zeros(1, 3, 32, 48))
    free = {2: "num_points"} | ({} if queries else {1: "num_queries"})
    encoder = folder / "efficient_sam_vitt_encoder.onnx"
    decoder = folder / "efficient_sam_vitt_decoder.onnx"
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of the exporter, about tracing
        torch.onnx.export(
            Encoder(model),
            (torch.zeros(1, 3, 32, 48),),
            str(encoder),
            opset_version=17,
            input_names=["batched_images"],
            output_names=["image_embeddings"],
            dynamic_axes={"batched_images": {0: "batch", 2: "height", 3: "width"}},
            dynamo=False,
        )
        torch.onnx.export(
            Decoder(model, scales=queries is not None),
            (embedding, points, labels, torch.tensor([64, 64])),
            str(decoder),
            opset_version=17,
            input_names=[
                "image_embeddings",
                "batched_point_coords",
                "batched_point_labels",
                "orig_im_size",
            ],
            output_names=["output_masks", "iou_predictions"],
            dynamic_axes={
                "image_embeddings": {0: "batch"},
                "batched_point_coords": free,
                "batched_point_labels": free,
            },
            dynamo=False,
        )
    if queries is None:
        _forget_output_shapes(decoder)
    return encoder


def _forget_output_shapes(file: Path) -> None:
    """The exporter writes down the number of prompts that it saw; onnxruntime warns of others."""
    import onnx

    model = onnx.load(str(file))
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    onnx.save(model, str(file))
