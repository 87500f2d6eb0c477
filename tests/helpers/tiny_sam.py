"""Promptable models with random weights, saved as their own classes save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


def save_with_contrast(model: torch.nn.Module, folder: Path) -> None:
    """Weights as they are at the start give masks of one sign; larger ones give shapes."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "vision_encoder" not in name:
                weight.normal_(std=0.7)
    model.save_pretrained(folder)


def tiny_sam(folder: Path) -> None:
    from transformers import (
        SamConfig,
        SamImageProcessor,
        SamMaskDecoderConfig,
        SamModel,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    vision = SamVisionConfig(
        hidden_size=16,
        output_channels=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        mlp_dim=16,
        window_size=4,
        global_attn_indexes=[1],
        num_pos_feats=8,
    )
    prompts = SamPromptEncoderConfig(
        hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4
    )
    decoder = SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=16, num_attention_heads=2, iou_head_depth=2, iou_head_hidden_dim=16
    )
    config = SamConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config=prompts.to_dict(),
        mask_decoder_config=decoder.to_dict(),
    )
    save_with_contrast(SamModel(config), folder)
    SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}
    ).save_pretrained(folder)


def tiny_sam2(folder: Path) -> None:
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2ImageProcessor,
        Sam2MaskDecoderConfig,
        Sam2Model,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 4],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    config = Sam2Config(
        vision_config=Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
            fpn_hidden_size=32,
        ),
        prompt_encoder_config=Sam2PromptEncoderConfig(
            hidden_size=32, image_size=64, patch_size=16, mask_input_channels=4
        ),
        mask_decoder_config=Sam2MaskDecoderConfig(
            hidden_size=32,
            mlp_dim=16,
            num_attention_heads=2,
            iou_head_depth=2,
            iou_head_hidden_dim=16,
        ),
    )
    save_with_contrast(Sam2Model(config), folder)
    Sam2ImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def tiny_edgetam(folder: Path) -> None:
    from transformers import (
        EdgeTamConfig,
        EdgeTamMaskDecoderConfig,
        EdgeTamModel,
        EdgeTamPromptEncoderConfig,
        EdgeTamVisionConfig,
        Sam2ImageProcessor,
        TimmWrapperConfig,
    )

    levels = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    backbone = TimmWrapperConfig(architecture="test_convnext", model_args=levels)
    config = EdgeTamConfig(
        vision_config=EdgeTamVisionConfig(
            backbone_config=backbone,
            backbone_channel_list=[64, 48, 32, 24],
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
            fpn_hidden_size=32,
        ),
        prompt_encoder_config=EdgeTamPromptEncoderConfig(
            hidden_size=32, image_size=64, patch_size=16, mask_input_channels=4
        ),
        mask_decoder_config=EdgeTamMaskDecoderConfig(
            hidden_size=32,
            mlp_dim=16,
            num_attention_heads=2,
            iou_head_depth=2,
            iou_head_hidden_dim=16,
        ),
    )
    save_with_contrast(EdgeTamModel(config), folder)
    Sam2ImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def sam3_parts() -> dict[str, dict[str, Any]]:
    """Configurations of SAM 3's parts, as keywords."""
    return {
        "vision_config": {
            "model_type": "sam3_vision_model",
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 64,
                "patch_size": 8,
                "window_size": 4,
                "global_attn_indexes": [1],
                "pretrain_image_size": 32,
            },
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        "prompt_encoder_config": {
            "hidden_size": 32,
            "image_size": 64,
            "patch_size": 8,
            "mask_input_channels": 4,
        },
        "mask_decoder_config": {
            "hidden_size": 32,
            "mlp_dim": 16,
            "num_attention_heads": 2,
            "iou_head_depth": 2,
            "iou_head_hidden_dim": 16,
        },
    }


def _sam3_processor(folder: Path) -> None:
    from transformers import Sam3ImageProcessor

    sizes = {"size": {"height": 64, "width": 64}, "mask_size": {"height": 32, "width": 32}}
    Sam3ImageProcessor(**sizes).save_pretrained(folder)


def _with_contrast(model: torch.nn.Module, encoder: float = 0.1) -> torch.nn.Module:
    """As :func:`save_with_contrast`, and in the encoder too: its features are near 0 else."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                in_encoder = "vision_encoder" in name or "tracker_neck" in name
                weight.normal_(std=encoder if in_encoder else 0.7)
    return model


def tiny_sam3(folder: Path) -> None:
    from transformers import Sam3TrackerConfig, Sam3TrackerModel

    _with_contrast(Sam3TrackerModel(Sam3TrackerConfig(**sam3_parts()))).save_pretrained(folder)
    _sam3_processor(folder)


def save_published_sam3(folder: Path) -> torch.nn.Module:
    """Write a folder as ``facebook/sam3`` is: detector and video tracker in one file."""
    from safetensors.torch import save_file
    from transformers import Sam3Config, Sam3VideoConfig, Sam3VideoModel

    layer = {"hidden_size": 32, "num_attention_heads": 2}
    layers = layer | {"num_layers": 1, "intermediate_size": 16}
    parts = sam3_parts()
    detector = Sam3Config(
        vision_config=parts["vision_config"],
        text_config={
            "model_type": "clip_text_model",
            "vocab_size": 100,
            "hidden_size": 16,
            "intermediate_size": 16,
            "projection_dim": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        geometry_encoder_config=layers,
        detr_encoder_config=layers,
        detr_decoder_config=layers | {"num_queries": 6},
        mask_decoder_config=layer,
    )
    tracker = parts | {
        "model_type": "sam3_tracker_video",
        "image_size": 64,
        "memory_attention_hidden_size": 32,
        "memory_attention_feed_forward_hidden_size": 16,
        "memory_attention_num_layers": 1,
        "memory_attention_rope_feat_sizes": [8, 8],
        "memory_encoder_hidden_size": 32,
        "memory_encoder_output_channels": 8,
        "mask_downsampler_embed_dim": 32,
        "memory_fuser_embed_dim": 32,
        "memory_fuser_intermediate_dim": 16,
        "memory_fuser_num_layers": 1,
    }
    torch.manual_seed(1)
    config = Sam3VideoConfig(detector_config=detector, tracker_config=tracker, low_res_mask_size=32)
    model = _with_contrast(Sam3VideoModel(config), 0.7)
    config.save_pretrained(folder)
    # Its own save_pretrained writes tracker_model.tracker_model.…, which nothing reads.
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _sam3_processor(folder)
    return model


MODELS = {"sam": tiny_sam, "sam2": tiny_sam2, "edgetam": tiny_edgetam, "sam3": tiny_sam3}


def save_model(name: str, folder: Path) -> Path:
    """Write a model and its image processor; EdgeTAM's backbone is one of timm's."""
    if name == "edgetam":
        pytest.importorskip("timm", reason="EdgeTAM's backbone comes from timm")
    torch.manual_seed(1)
    MODELS[name](folder)
    return folder
