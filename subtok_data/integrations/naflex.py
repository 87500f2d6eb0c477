"""Turn visual tokens into the input of timm's NaFlex vision transformers.

Every token becomes one patch: its box, resampled to the patch size, without what is not its own.
The transformer then reads regions where it read squares.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.ops import roi_align

from subtok_data.errors import ConfigError
from subtok_data.nn import shape_codes

__all__ = ["to_naflex"]


def to_naflex(
    batch: Mapping[str, Tensor], patch_size: int = 16, *, fill: float | None = 0.0
) -> dict[str, Tensor]:
    """Turn a padded batch into ``patches``, ``patch_coord`` and ``patch_valid``.

    The coordinates are the token centres on the grid of patches that the image would have. Models
    must look positions up by these coordinates. In timm, rotary position embeddings do, and the
    others with ``pos_embed_use_grid_sample=True``; without it learned ones assume that all patches
    are there, in raster order.

    Parameters
    ----------
    batch : mapping
        A padded batch with ``pixel_values`` as float.
    patch_size : int
        Side of a patch in pixels, P.
    fill : float or None
        Value of pixels inside the box that belong to other tokens; 0 is the mean colour of
        normalised pixels. ``None`` keeps them.

    Returns
    -------
    dict of Tensor
        ``patches`` (I, N, P * P * 3) float32, channels last as timm has them; ``patch_coord``
        (I, N, 2) int64, (y, x); ``patch_valid`` (I, N) bool. Padding is 0.

    Raises
    ------
    ConfigError
        When ``pixel_values`` are bytes, or the batch is packed.

    Examples
    --------
    >>> batch = {
    ...     "pixel_values": torch.arange(12.0).view(1, 3, 2, 2),
    ...     "visual_token_map": torch.zeros(1, 2, 2, dtype=torch.int32),
    ...     "num_visual_tokens": torch.tensor([1]),
    ...     "visual_token_mask": torch.tensor([[True]]),
    ...     "visual_token_boxes": torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]),
    ...     "visual_token_centers": torch.tensor([[[0.5, 0.5]]]),
    ... }
    >>> to_naflex(batch, 2)["patches"].tolist()
    [[[0.0, 4.0, 8.0, 1.0, 5.0, 9.0, 2.0, 6.0, 10.0, 3.0, 7.0, 11.0]]]
    """
    pixels = batch["pixel_values"]
    if not pixels.is_floating_point():
        raise ConfigError("pixel_values are bytes: patches need normalised pixels, as float")
    if "visual_token_mask" not in batch:
        raise ConfigError("the batch is packed; NaFlex input is made from padded batches")
    mask = batch["visual_token_mask"]
    whole = [list(pixels.shape[-2:])] * pixels.shape[0]
    valid = batch.get("valid_sizes", torch.tensor(whole, device=pixels.device))
    height_width = valid.to(torch.float32)
    scale = torch.cat([height_width.flip(1), height_width.flip(1)], dim=1)
    boxes = (batch["visual_token_boxes"].float() * scale[:, None])[mask]
    image = torch.arange(mask.shape[0], device=mask.device)[:, None].expand_as(mask)[mask]
    crops = roi_align(
        pixels.float(),
        torch.cat([image[:, None].float(), boxes], dim=1),
        (patch_size, patch_size),
        aligned=True,
    )
    if fill is not None:
        sizes = batch["map_sizes"].tolist() if "map_sizes" in batch else None
        counts = batch["num_visual_tokens"].tolist()
        own = shape_codes(batch["visual_token_map"], counts, patch_size, map_sizes=sizes)
        crops = crops.masked_fill(~own[:, None], fill)
    rows = crops.permute(0, 2, 3, 1).flatten(1)
    patches = rows.new_zeros(*mask.shape, rows.shape[1]).masked_scatter(mask[..., None], rows)
    grid = torch.div(valid + patch_size - 1, patch_size, rounding_mode="floor")[:, None]
    coordinates = (
        batch["visual_token_centers"].float() * height_width[:, None] / patch_size
    ).long()
    coordinates = torch.minimum(coordinates, grid - 1) * mask[..., None]
    return {"patches": patches, "patch_coord": coordinates, "patch_valid": mask}
