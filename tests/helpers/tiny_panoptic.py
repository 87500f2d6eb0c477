"""Panoptic models with random weights, saved as their own classes save them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

BACKBONE = {
    "image_size": 64,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 1, 1],
    "window_size": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
SIZES = {"num_queries": 12, "num_labels": 5, "init_std": 1.0, "init_xavier_std": 3.0}


def tiny_mask2former(folder: Path) -> None:
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    config = Mask2FormerConfig(
        backbone_config=SwinConfig(**BACKBONE),
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        encoder_feedforward_dim=16,
        **SIZES,
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def tiny_oneformer(folder: Path) -> None:
    from transformers import (
        CLIPTokenizer,
        OneFormerConfig,
        OneFormerForUniversalSegmentation,
        OneFormerImageProcessor,
        OneFormerProcessor,
        SwinConfig,
    )

    letters = sorted(set("the task is panoptic".replace(" ", "")))
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    words = [*pieces, "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    config = OneFormerConfig(
        backbone_config=SwinConfig(**BACKBONE),
        hidden_dim=32,
        conv_dim=32,
        mask_dim=32,
        encoder_layers=1,
        decoder_layers=3,
        query_dec_layers=1,
        num_attention_heads=2,
        dim_feedforward=16,
        encoder_feedforward_dim=16,
        text_encoder_width=16,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=len(words),
        **SIZES,
    )
    OneFormerForUniversalSegmentation(config).save_pretrained(folder)
    classes = {str(i): {"name": f"class {i}", "isthing": 1} for i in range(5)}
    (folder / "coco_panoptic.json").write_text(json.dumps(classes))
    images = OneFormerImageProcessor(
        size={"height": 64, "width": 64},
        class_info_file="coco_panoptic.json",
        repo_path=str(folder),
        num_text=5,
    )
    OneFormerProcessor(images, tokenizer).save_pretrained(folder)
    (folder / "coco_panoptic.json").unlink()  # published folders name a file that is on the hub
    file = folder / "processor_config.json"
    saved = json.loads(file.read_text())
    saved["image_processor"] |= {
        "class_info_file": "coco_panoptic.json",
        "repo_path": "shi-labs/oneformer_demo",
    }
    file.write_text(json.dumps(saved))


def tiny_eomt(folder: Path) -> None:
    from transformers import EomtConfig, EomtForUniversalSegmentation, EomtImageProcessor

    config = EomtConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        num_queries=12,
        num_blocks=1,
        num_upscale_blocks=2,
        num_labels=5,
    )
    model = EomtForUniversalSegmentation(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
    model.save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 64}
    EomtImageProcessor(size=size, do_split_image=False, do_pad=True).save_pretrained(folder)


MODELS = {"mask2former": tiny_mask2former, "oneformer": tiny_oneformer, "eomt": tiny_eomt}


def save_model(name: str, folder: Path) -> Path:
    torch.manual_seed(4)
    MODELS[name](folder)
    return folder
