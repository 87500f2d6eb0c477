"""Features of encoders of all kinds, and visual vectors in the sequence of a text."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from subtok_data.errors import ConfigError
from subtok_data.nn import FeatureEncoder, merge_visual_tokens


class TestMerge:
    ids = torch.tensor([[1, 7, 7, 2, 0], [3, 7, 4, 7, 5]])

    def test_puts_vectors_in_order_and_passes_gradients(self):
        text = torch.randn(2, 5, 3, requires_grad=True)
        features = torch.randn(4, 3, requires_grad=True)
        merged = merge_visual_tokens(text, self.ids, features, 7)
        assert torch.equal(merged[self.ids == 7], features)
        assert torch.equal(merged[self.ids != 7], text[self.ids != 7])
        merged.sum().backward()
        assert torch.equal(features.grad, torch.ones(4, 3))
        assert torch.equal(text.grad, (self.ids != 7)[..., None].expand(2, 5, 3).float())

    def test_adds_as_the_original_does(self):
        text = torch.randn(2, 5, 3)
        features = torch.randn(4, 3)
        merged = merge_visual_tokens(text, self.ids, features, 7, mode="add")
        torch.testing.assert_close(merged[self.ids == 7], text[self.ids == 7] + features)

    def test_takes_padded_features(self):
        features = torch.randn(2, 3, 3)
        mask = torch.tensor([[True, True, False], [True, True, False]])
        merged = merge_visual_tokens(
            torch.zeros(2, 5, 3), self.ids, features, 7, visual_token_mask=mask
        )
        assert torch.equal(merged[self.ids == 7], features[mask])

    def test_names_both_counts(self):
        with pytest.raises(ValueError, match=r"4 placeholders \(id 7\).* 3 visual vectors"):
            merge_visual_tokens(torch.zeros(2, 5, 3), self.ids, torch.zeros(3, 3), 7)
        with pytest.raises(ValueError, match="width 2, the text embeddings 3"):
            merge_visual_tokens(torch.zeros(2, 5, 3), self.ids, torch.zeros(4, 2), 7)
        with pytest.raises(ValueError, match="visual_token_mask"):
            merge_visual_tokens(torch.zeros(2, 5, 3), self.ids, torch.zeros(2, 2, 3), 7)


class TestEncoders:
    pixels = torch.randn(2, 3, 56, 42)

    def test_transformers_backbone(self):
        from transformers import Dinov2Backbone, Dinov2Config

        config = Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
        )
        encoder = FeatureEncoder(Dinov2Backbone(config), frozen=True)
        assert encoder.stride == 14
        assert encoder(self.pixels).shape == (2, 16, 4, 3)
        assert not encoder.train().module.training

    def test_stages_have_no_common_stride(self):
        from transformers import ConvNextBackbone, ConvNextConfig

        config = ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2)
        encoder = FeatureEncoder(ConvNextBackbone(config))
        assert encoder.stride is None
        assert encoder(torch.zeros(1, 3, 32, 32)).shape == (1, 8, 4, 4)

    def test_sequence_of_a_vision_transformer(self):
        from transformers import ViTConfig, ViTModel

        config = ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=32,
            patch_size=8,
        )
        model = ViTModel(config, add_pooling_layer=False)
        pixels = torch.randn(1, 3, 32, 32)
        tokens = model(pixels).last_hidden_state
        features = FeatureEncoder(model)(pixels)
        assert torch.equal(features[0, :, 1, 2], tokens[0, 1 + 1 * 4 + 2])

    def test_list_of_maps_and_stage(self):
        class Pyramid(nn.Module):
            def forward(self, x):
                return [x[..., ::2, ::2], x[..., ::4, ::4]]

        assert FeatureEncoder(Pyramid())(self.pixels).shape == (2, 3, 14, 11)
        assert FeatureEncoder(Pyramid(), stage=0)(self.pixels).shape == (2, 3, 28, 21)

    def test_vae_gives_its_mode(self):
        class VAE(nn.Module):
            def encode(self, x):
                mode = x[..., ::8, ::8]
                return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: mode))

        assert torch.equal(FeatureEncoder(VAE())(self.pixels), self.pixels[..., ::8, ::8])

    def test_diffusers_vae(self):
        diffusers = pytest.importorskip("diffusers")
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
        )
        features = FeatureEncoder(vae, frozen=True)(torch.zeros(1, 3, 32, 32))
        assert features.shape == (1, 4, 16, 16)

    def test_raw_pixels(self):
        assert torch.equal(FeatureEncoder()(self.pixels), self.pixels)

    def test_unreadable_outputs_are_refused(self):
        class Wrong(nn.Module):
            def __init__(self, output):
                super().__init__()
                self.output = output

            def forward(self, x):
                return self.output

        with pytest.raises(ConfigError, match="returned str"):
            FeatureEncoder(Wrong("no"))(self.pixels)
        with pytest.raises(ConfigError, match="stride="):
            FeatureEncoder(Wrong(torch.zeros(2, 12, 4)))(self.pixels)
        with pytest.raises(ConfigError, match="check stride="):
            FeatureEncoder(Wrong(torch.zeros(2, 3, 4)), stride=14)(self.pixels)
