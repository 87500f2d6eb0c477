"""Embed visual tokens: features and token maps → one vector per token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subtok_data.errors import ConfigError
from subtok_data.nn.cells import TokenCells, host_cells, pool_tokens
from subtok_data.nn.inputs import HOST_KEYS, token_inputs
from subtok_data.nn.intervals import cell_size
from subtok_data.nn.roi import roi_pool_tokens
from subtok_data.nn.transfer import to_device, to_host

__all__ = ["TokenEmbedding"]

Pooling = Literal["area", "bilinear", "roi"]
_BOX = 4


class TokenEmbedding(nn.Module):
    """Embed each visual token as one vector: mean of features, box and shape, projected.

    The content of a token is the exact mean of the features over its pixels, by a sparse matrix
    that is computed on the CPU from the token map. The position is the box (centre, width and
    height in [0, 1]) and the shape in ``shape_size`` x ``shape_size`` bins. Content and position
    enter the first layer of a perceptron; the position's part runs in float32 also under autocast
    or in a bf16 module, since bf16 cannot tell apart places less than 1/256 of the image away from
    each other.

    ``torch.compile`` takes it without a graph break, for any number of tokens at once, except for
    ``pooling="roi"``. On an accelerator, leave the batch's ``host_keys`` on the CPU: then the
    host waits for nothing. Where they are on the device, it waits once, for one copy of them.

    Parameters
    ----------
    feature_dim : int
        Channels of the features, C.
    hidden_size : int
        Width of the language model, h.
    pooling : {"area", "bilinear", "roi"}
        ``"area"``: at the features' own resolution, cells weighted by the area that belongs to the
        token. ``"bilinear"``: at the map's resolution, features interpolated between cell centres.
        ``"roi"``: the paper's approximation, for comparison.
    shape_size : int
        Bins per side of the shape code, r; 0 for none.
    stride : int, optional
        Pixels per feature cell; needed when the cells do not divide the encoder input evenly
        (``FeatureEncoder.stride``).
    mlp_ratio : float
        Width of the hidden layer over ``hidden_size``.

    Attributes
    ----------
    host_keys : tuple of str
        What of a batch is better left on the CPU.

    Examples
    --------
    >>> embedding = TokenEmbedding(8, 16, shape_size=4)
    >>> batch = {
    ...     "pixel_values": torch.zeros(1, 3, 32, 32),
    ...     "visual_token_map": torch.arange(2).repeat_interleave(16)[None, None].expand(1, 32, 32),
    ...     "num_visual_tokens": torch.tensor([2]),
    ...     "visual_token_mask": torch.ones(1, 2, dtype=torch.bool),
    ...     "visual_token_boxes": torch.tensor([[[0, 0, 0.5, 1], [0.5, 0, 1, 1]]]),
    ... }
    >>> tuple(embedding(torch.zeros(1, 8, 4, 4), batch).shape)
    (2, 16)
    """

    host_keys: ClassVar[tuple[str, ...]] = HOST_KEYS

    def __init__(
        self,
        feature_dim: int,
        hidden_size: int,
        *,
        pooling: Pooling = "area",
        shape_size: int = 16,
        stride: int | None = None,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if pooling not in ("area", "bilinear", "roi"):
            raise ConfigError(f"pooling is {pooling!r}; choose 'area', 'bilinear' or 'roi'")
        if pooling == "roi" and shape_size < 1:
            raise ConfigError("pooling='roi' needs shape_size >= 1: its bins are the RoIAlign grid")
        self.feature_dim = feature_dim
        self.hidden_size = hidden_size
        self.pooling: Pooling = pooling
        self.shape_size = shape_size
        self.stride = stride
        width = round(mlp_ratio * hidden_size)
        self.position = nn.Linear(_BOX + shape_size**2, width)
        self.content = nn.Linear(feature_dim, width, bias=False)
        self.head: nn.Module = nn.Sequential(nn.GELU(), nn.Linear(width, hidden_size))

    @classmethod
    def paper(
        cls, feature_dim: int, hidden_size: int, *, shape_size: int = 32, stride: int | None = None
    ) -> TokenEmbedding:
        """Build the variant of the paper's code, for comparison.

        RoIAlign on 32 x 32 bins and three linear layers without bias, (4 + r² + C) -> h -> 4h -> h.

        Tokens at the right and lower edge of the image differ from the original, whose boxes end at
        W − 1 and H − 1: there a box that is as wide as the image misses its last column. The
        original also adds the vectors to the embedding of the placeholder, for which
        :func:`merge_visual_tokens` has ``mode="add"``; by default they take its place.

        Examples
        --------
        >>> sum(p.numel() for p in TokenEmbedding.paper(384, 64).parameters())
        123136
        """
        self = cls(
            feature_dim,
            hidden_size,
            pooling="roi",
            shape_size=shape_size,
            stride=stride,
            mlp_ratio=1.0,
        )
        self.position = nn.Linear(_BOX + shape_size**2, hidden_size, bias=False)
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Linear(hidden_size, 4 * hidden_size, bias=False),
            nn.ReLU(),
            nn.Linear(4 * hidden_size, hidden_size, bias=False),
        )
        return self

    def forward(
        self,
        features: Tensor,
        batch: Mapping[str, Tensor],
        *,
        layout: Literal["packed", "padded"] = "packed",
        cells: TokenCells | None = None,
    ) -> Tensor:
        """Embed all visual tokens of a batch.

        Parameters
        ----------
        features : Tensor
            (I, C, h, w) of ``batch["pixel_values"]``, any float dtype.
        batch : mapping
            A finished batch, padded or packed. Read are ``pixel_values`` (its size only),
            ``visual_token_map``, ``num_visual_tokens``, ``visual_token_boxes`` and, where present,
            ``visual_token_mask``, ``visual_token_shapes``, ``map_sizes`` and ``valid_sizes``. Each
            may be on the CPU or on the device of the features.
        layout : {"packed", "padded"}
            (T, h), image after image, which :func:`merge_visual_tokens` takes; or (I, N, h) with
            zeros on padding.
        cells : TokenCells, optional
            From :meth:`cells_of`, where one batch is used several times, or another thread has made
            them before. They may lie on the CPU.

        Returns
        -------
        Tensor
            float32, or the autocast dtype, or the module's own when it is not float32.
        """
        if features.shape[1] != self.feature_dim:
            raise ConfigError(
                f"features have {features.shape[1]} channels, feature_dim is {self.feature_dim}"
            )
        by_region = self.pooling == "roi"
        images, _, height, width = features.shape
        given = token_inputs(
            batch,
            features.device,
            feature_size=None if by_region or cells else (height, width),
            stride=self.stride,
            sampling="bilinear" if self.pooling == "bilinear" else "area",
            shape_size=0 if by_region else self.shape_size,
        )
        boxes, shapes = given.boxes.float(), given.shapes
        with torch.autocast(features.device.type, enabled=False):
            if by_region:
                content, shapes = self._roi(features, batch)
            else:
                cells = cells or TokenCells(
                    *given.cells,
                    num_tokens=boxes.shape[0],
                    feature_shape=(images, height, width),
                )
                if cells.token.device != features.device:
                    cells = cells.to(features.device)
                content = pool_tokens(features, cells)
        low, high = boxes[:, :2], boxes[:, 2:]
        place = torch.cat([(low + high) / 2, high - low, shapes.flatten(1).float()], dim=1)
        dtype = self.content.weight.dtype
        with torch.autocast(features.device.type, enabled=False):
            bias = cast(Tensor | None, self.position.bias)
            position = F.linear(
                place, self.position.weight.float(), None if bias is None else bias.float()
            )
        hidden = self.content(content.to(dtype)).float() + position
        vectors: Tensor = self.head(hidden.to(dtype))
        if layout == "packed":
            return vectors
        mask = batch["visual_token_mask"]
        (mask,) = to_device([mask], features.device)
        padded = vectors.new_zeros(*mask.shape, self.hidden_size)
        return padded.masked_scatter(mask[..., None], vectors)

    def cells_of(self, batch: Mapping[str, Tensor], feature_size: tuple[int, int]) -> TokenCells:
        """Compute the share of each feature cell in each token, for features of (h, w) cells.

        On the device of ``pixel_values``. Where it is on the CPU nothing is copied: then a thread
        can make the cells of the next batch, and ``TokenCells.to`` brings them up.

        Examples
        --------
        >>> batch = {
        ...     "pixel_values": torch.zeros(1, 3, 8, 8),
        ...     "visual_token_map": torch.zeros(1, 8, 8, dtype=torch.int32),
        ...     "num_visual_tokens": torch.tensor([1]),
        ... }
        >>> TokenEmbedding(4, 8).cells_of(batch, (2, 2)).weight.tolist()
        [0.25, 0.25, 0.25, 0.25]
        """
        names = ("visual_token_map", "num_visual_tokens", "map_sizes", "valid_sizes")
        present = [name for name in names if name in batch]
        host = dict(zip(present, to_host([batch[name] for name in present]), strict=True))
        cells = host_cells(
            host["visual_token_map"],
            host["num_visual_tokens"].tolist(),
            feature_size,
            pixel_size=(int(batch["pixel_values"].shape[-2]), int(batch["pixel_values"].shape[-1])),
            map_sizes=_sizes(host, "map_sizes"),
            valid_sizes=_sizes(host, "valid_sizes"),
            stride=self.stride,
            sampling="bilinear" if self.pooling == "bilinear" else "area",
        )
        return cells.to(batch["pixel_values"].device)

    def _roi(self, features: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        pixels, size = batch["pixel_values"].shape[-2:], features.shape[-2:]
        extent: list[float] = []
        for side, cells, name in zip(pixels, size, ("height", "width"), strict=True):
            numerator, denominator = cell_size(side, cells, self.stride, name)
            extent.append(cells * numerator / denominator / side)
        return roi_pool_tokens(
            features,
            batch["visual_token_map"],
            batch["num_visual_tokens"].tolist(),
            self.shape_size,
            map_sizes=_sizes(batch, "map_sizes"),
            extent=(extent[0], extent[1]),
        )


def _sizes(batch: Mapping[str, Tensor], name: str) -> list[list[int]] | None:
    return batch[name].tolist() if name in batch else None
