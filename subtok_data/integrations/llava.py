"""Give LLaVA-type models of transformers visual tokens instead of a grid of patches.

The model stays what it is, with its own ``forward`` and loss; only its ``get_image_features`` is
replaced: features of the encoder, pooled over each token by a
:class:`~subtok_data.nn.TokenEmbedding`. It is saved by ``save_pretrained`` as ever, and read again
by :func:`load_subobject_model`, since ``from_pretrained`` would build the stock model.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from subtok_data.arguments import check_count
from subtok_data.batch import IGNORE_INDEX, VISUAL_KEYS
from subtok_data.errors import ConfigError
from subtok_data.nn import FeatureEncoder, TokenEmbedding
from subtok_data.transformers_io import read_pretrained

__all__ = ["generation_inputs", "load_subobject_model", "use_subobject_tokens"]

_ATTRIBUTE = "subobject_features"
_MARK = "subobject_tokens"
"""Entry of the configuration that tells a saved model with visual tokens from a stock one."""


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


def _check_placeholder(model: Any, placeholder_id: object) -> None:
    check_count("placeholder_id", placeholder_id, least=0, optional=False)
    rows = int(model.get_input_embeddings().weight.shape[0])
    if cast("int", placeholder_id) >= rows:
        raise ConfigError(
            f"placeholder_id={placeholder_id}, but the model has embeddings for {rows} tokens: the "
            "placeholder was added to the text tokenizer. Call "
            "model.resize_token_embeddings(len(text_tokenizer)) first"
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
        ``subtok_data.batch``. The new parameters are under ``subobject_features`` of its inner
        model, so ``state_dict``, ``.to`` and optimizers see them; its projector is dropped.

    Raises
    ------
    ConfigError
        For models that need a grid of patches (Qwen-VL and other multimodal rotary positions), for
        those that are not built like LLaVA, for those that have visual tokens already, and for
        those whose embeddings end before ``placeholder_id``.

    Notes
    -----
    ``save_pretrained`` keeps the names of ``state_dict``, so that ``Trainer`` finds all weights
    when it resumes and at ``load_best_model_at_end``. (By default transformers writes LLaVA under
    its older names, which ``from_pretrained`` translates back, but ``Trainer`` does not.)
    """
    _refuse_grid_models(model)
    base = model.model
    config = model.config
    if hasattr(base, _ATTRIBUTE):
        raise ConfigError("the model has visual tokens already: call use_subobject_tokens once")
    if getattr(config, _MARK, False):
        raise ConfigError(
            "the model was saved with visual tokens, and from_pretrained read it as a stock one, "
            "with new weights in place of the trained encoder and token embedding: use "
            "load_subobject_model(folder) in place of both"
        )
    _check_placeholder(model, placeholder_id)
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
    setattr(config, _MARK, True)
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
    return model


def load_subobject_model(
    folder: str | Path,
    *,
    encoder: FeatureEncoder | None = None,
    embedding: TokenEmbedding | None = None,
    feature_dim: int | None = None,
) -> Any:
    """Read a model with visual tokens that ``save_pretrained`` or ``Trainer`` wrote.

    Parameters
    ----------
    folder : str or Path
        What ``save_pretrained`` was given, or a checkpoint of ``Trainer``.
    encoder, embedding, feature_dim
        What :func:`use_subobject_tokens` was given; modules of the same form, whose weights are
        read from the folder.

    Returns
    -------
    PreTrainedModel
        In evaluation mode, on the CPU, in the dtype it was saved in.

    Raises
    ------
    ConfigError
        If the folder holds no model with visual tokens, or its weights are not exactly those of
        this encoder and embedding.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} has no config.json: give a folder of save_pretrained")
    config: Any = read_pretrained(AutoConfig, folder)
    if not getattr(config, _MARK, False):
        raise ConfigError(
            f"{folder} holds a {config.model_type!r} without visual tokens: read it with "
            f"from_pretrained, then call use_subobject_tokens"
        )
    setattr(config, _MARK, False)  # until the model has them
    model: Any = AutoModelForImageTextToText.from_config(config, dtype=config.dtype)
    use_subobject_tokens(
        model,
        config.image_token_id,
        encoder=encoder,
        embedding=embedding,
        feature_dim=feature_dim,
    )
    try:
        found = model.load_state_dict(_saved_weights(folder), strict=False)
    except RuntimeError as error:  # shapes
        raise ConfigError(f"the weights in {folder} do not fit: {error}") from error
    model.tie_weights()
    tied = set(model.all_tied_weights_keys)
    missing = [name for name in found.missing_keys if name not in tied]
    if missing or found.unexpected_keys:
        raise ConfigError(
            f"the weights in {folder} are of another encoder or embedding: "
            f"{_some(missing)} missing, {_some(found.unexpected_keys)} left over. Give encoder= "
            f"and embedding= as to use_subobject_tokens"
        )
    if (folder / "generation_config.json").is_file():
        model.generation_config = read_pretrained(GenerationConfig, folder)
    return model.eval()


def _saved_weights(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
    weights: dict[str, Tensor] = {}
    for name in sorted(names):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} has no {name}: the weights are not, or not all, there")
        weights.update(load_file(folder / name))
    return weights


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:2])}{', …' if len(names) > 2 else ''})"


def _take_visual_keys(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Keep the visual keys from the language model, and labels from visual tokens.

    Collators that know processors only, such as TRL's, copy all of ``input_ids`` as labels.
    """
    features = getattr(model.model, _ATTRIBUTE)
    features.visual = {name: kwargs.pop(name) for name in VISUAL_KEYS if name in kwargs}
    labels, ids = kwargs.get("labels"), kwargs.get("input_ids")
    if labels is not None and ids is not None:
        placeholders = ids == model.config.image_token_id
        kwargs["labels"] = labels.masked_fill(placeholders, IGNORE_INDEX)
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
