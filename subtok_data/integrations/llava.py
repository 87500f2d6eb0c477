"""Give LLaVA-type models of transformers visual tokens instead of a grid of patches.

The model stays what it is, with its own ``forward``, loss and checkpoints; only its
``get_image_features`` is replaced: features of the encoder, pooled over each token by a
:class:`~subtok_data.nn.TokenEmbedding`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from subtok_data.batch import VISUAL_KEYS
from subtok_data.errors import ConfigError
from subtok_data.nn import FeatureEncoder, TokenEmbedding

__all__ = ["generation_inputs", "use_subobject_tokens"]
_ATTRIBUTE = "subobject_features"


class _TowerFeatures(nn.Module):
    """Feature map of the layer that the model was configured to read from its vision tower."""

    def __init__(self, tower: nn.Module, layer: int) -> None:
        super().__init__()
        self.tower = tower
        self.layer = layer

    @property
    def config(self) -> Any:
        """Configuration of the tower, where the patch size stands."""
        return self.tower.config

    def forward(self, pixel_values: Tensor) -> Tensor:
        output: Any = self.tower(pixel_values, output_hidden_states=True, return_dict=True)
        return output.hidden_states[self.layer]


class _SubobjectFeatures(nn.Module):
    """Encoder and token embedding, with the visual keys of the batch under way."""

    def __init__(self, encoder: FeatureEncoder, embedding: TokenEmbedding) -> None:
        super().__init__()
        self.encoder = encoder
        self.embedding = embedding
        self.visual: dict[str, Tensor] = {}

    def forward(self, pixel_values: Tensor, visual: Mapping[str, Tensor]) -> Tensor:
        """Vectors (T, h) of all tokens."""
        batch = {**visual, "pixel_values": pixel_values}
        return self.embedding(self.encoder(pixel_values), batch)

    def get_image_features(
        self, pixel_values: Tensor, **_ignored: Any
    ) -> BaseModelOutputWithPooling:
        """Stand in for the method of the model: one tensor (n, h) per image."""
        if not self.visual:
            raise ConfigError(
                "the model got pixel_values without visual tokens: call it with "
                "model(**model_inputs(batch, model))"
            )
        visual, self.visual = self.visual, {}  # held no longer than needed
        vectors = self(pixel_values, visual)
        counts = visual["num_visual_tokens"].tolist()
        output = BaseModelOutputWithPooling()
        # The models concatenate what they find here, so it may be ragged.
        output.pooler_output = list(vectors.split(counts))  # type: ignore[assignment]
        return output


def _refuse_grid_models(model: Any) -> None:
    config = model.config
    kind = getattr(config, "model_type", type(model).__name__)
    base = getattr(model, "model", None)
    named = inspect.signature(model.forward).parameters
    grid = [name for name in ("image_grid_thw", "spatial_shapes") if name in named]
    if grid or hasattr(base, "get_rope_index"):
        raise ConfigError(
            f"{kind!r} places its visual tokens on a grid ({', '.join(grid) or 'rotary positions'}"
            f"), which regions do not have. Use a LLaVA-type model, or a causal language model "
            f"with merge_visual_tokens"
        )
    wanted = ("get_image_features", "get_placeholder_mask", "vision_tower", "language_model")
    missing = [name for name in wanted if not hasattr(base, name)]
    if missing or not hasattr(config, "image_token_id"):
        raise ConfigError(
            f"{kind!r} is not a LLaVA-type model of transformers: its inner model lacks "
            f"{', '.join(missing) or 'image_token_id'}. Use merge_visual_tokens with its input "
            f"embeddings instead"
        )


def use_subobject_tokens(
    model: Any,
    placeholder_id: int,
    *,
    encoder: FeatureEncoder | None = None,
    embedding: TokenEmbedding | None = None,
    feature_dim: int | None = None,
) -> Any:
    """Replace the image features of a LLaVA-type model by visual tokens, in place.

    Parameters
    ----------
    model : PreTrainedModel
        ``LlavaForConditionalGeneration`` or one of its kind.
    placeholder_id : int
        Id of the visual placeholder; becomes ``config.image_token_id``.
    encoder : FeatureEncoder, optional
        Instead of the model's own vision tower, which is then dropped.
    embedding : TokenEmbedding, optional
        By default a new one of the model's width; its parameters are to be trained.
    feature_dim : int, optional
        Channels of the encoder's features; needed for the default embedding with an own encoder.

    Returns
    -------
    PreTrainedModel
        The same model, to be called with ``model(**model_inputs(batch, model))`` of
        :mod:`subtok_data.batch`. The new parameters are under ``subobject_features`` of its inner
        model, so ``state_dict``, ``.to`` and optimizers see them; its projector is dropped.

    Raises
    ------
    ConfigError
        For models that need a grid of patches (Qwen-VL and other multimodal rotary positions), and
        for those that are not built like LLaVA.
    """
    _refuse_grid_models(model)
    base = model.model
    config = model.config
    if encoder is None:
        layer = getattr(config, "vision_feature_layer", -1)
        if not isinstance(layer, int):
            raise ConfigError(f"vision_feature_layer is {layer}: give one layer, or an encoder=")
        encoder = FeatureEncoder(_TowerFeatures(base.vision_tower, layer))
        feature_dim = int(config.vision_config.hidden_size)
    if embedding is None:
        if feature_dim is None:
            raise ConfigError("an own encoder= needs embedding=, or feature_dim= (its channels)")
        embedding = TokenEmbedding(
            feature_dim, int(config.text_config.hidden_size), stride=encoder.stride
        )
    features = _SubobjectFeatures(encoder, embedding)
    reference = model.get_input_embeddings().weight
    features.to(reference.device, reference.dtype)
    # Modules without a part in the forward pass would stall distributed training.
    base.vision_tower = nn.Identity()
    base.multi_modal_projector = nn.Identity()
    setattr(base, _ATTRIBUTE, features)
    base.get_image_features = features.get_image_features
    config.image_token_id = placeholder_id
    base.config.image_token_id = placeholder_id
    model.visual_inputs = VISUAL_KEYS  # what model_inputs selects besides the arguments of forward
    model.register_forward_pre_hook(_take_visual_keys, with_kwargs=True)
    return model


def _take_visual_keys(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Keep the visual keys from the language model, which would not know them."""
    features = getattr(model.model, _ATTRIBUTE)
    features.visual = {name: kwargs.pop(name) for name in VISUAL_KEYS if name in kwargs}
    return args, kwargs


@torch.no_grad()
def generation_inputs(batch: Mapping[str, Any], model: Any) -> dict[str, Tensor]:
    """Make the arguments of ``model.generate``: embeddings of text and visual tokens, and the mask.

    Parameters
    ----------
    batch : mapping
        A left-padded batch (``TextConfig.for_generation``).
    model : PreTrainedModel
        From :func:`use_subobject_tokens`.
    """
    from subtok_data.nn import merge_visual_tokens

    features = getattr(model.model, _ATTRIBUTE)
    vectors = features(batch["pixel_values"], batch)
    text = model.get_input_embeddings()(batch["input_ids"])
    embeds = merge_visual_tokens(text, batch["input_ids"], vectors, model.config.image_token_id)
    return {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]}
