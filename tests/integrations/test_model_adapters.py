"""Batches in models of timm and transformers: what they see, learn, generate and refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.tiny_llava import small_llava
from helpers.tiny_tokenizers import byte_tokenizer
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
)

from subtok_data.batch import model_inputs
from subtok_data.errors import ConfigError
from subtok_data.integrations.llava import generation_inputs, use_subobject_tokens
from subtok_data.integrations.naflex import to_naflex
from subtok_data.nn import FeatureEncoder, TokenEmbedding
from subtok_data.segment import measure
from subtok_data.text import TextConfig, TextEncoder, pack_batch


def visual_batch(maps: list[np.ndarray], side: int) -> dict[str, torch.Tensor]:
    """Visual part of a padded batch, straight from token maps."""
    geometry = [measure(m.astype(np.int16), int(m.max()) + 1) for m in maps]
    counts = torch.tensor([len(g.areas) for g in geometry])
    images, widest = len(maps), int(counts.max())
    batch = {
        "pixel_values": torch.randn(
            images, 3, side, side, generator=torch.Generator().manual_seed(0)
        ),
        "valid_sizes": torch.tensor([m.shape for m in maps]),
        "visual_token_map": torch.full((images, side, side), -1, dtype=torch.int32),
        "map_sizes": torch.tensor([m.shape for m in maps]),
        "num_visual_tokens": counts,
        "visual_token_mask": torch.arange(widest) < counts[:, None],
        "visual_token_boxes": torch.zeros(images, widest, 4),
        "visual_token_centers": torch.zeros(images, widest, 2),
    }
    for i, (token, found) in enumerate(zip(maps, geometry, strict=True)):
        h, w = token.shape
        batch["visual_token_map"][i, :h, :w] = torch.from_numpy(token.astype(np.int32))
        n = len(found.areas)
        boxes = torch.from_numpy(found.boxes).float()
        batch["visual_token_boxes"][i, :n] = boxes / torch.tensor([w, h, w, h])
        batch["visual_token_centers"][i, :n] = torch.from_numpy(found.centers) / torch.tensor(
            [h, w]
        )
    return batch


def grid(height: int, width: int, patch: int) -> np.ndarray:
    columns = -(-width // patch)
    y, x = np.mgrid[:height, :width]
    return (y // patch) * columns + x // patch


def blobs(seed: int, height: int, width: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sites = rng.integers(0, [height, width], (count, 2))
    y, x = np.mgrid[:height, :width]
    near = ((y[..., None] - sites[:, 0]) ** 2 + (x[..., None] - sites[:, 1]) ** 2).argmin(-1)
    return np.unique(near, return_inverse=True)[1].reshape(height, width)


class TestNaFlex:
    def test_square_tokens_are_the_patches_of_timm(self):
        batch = visual_batch([grid(32, 48, 16), grid(48, 48, 16)], 48)
        ours = to_naflex(batch, 16)
        assert ours["patches"].shape == (2, 9, 768)
        for i, (rows, columns) in enumerate([(2, 3), (3, 3)]):
            picture = batch["pixel_values"][i, :, : rows * 16, : columns * 16]
            patches = picture.reshape(3, rows, 16, columns, 16).permute(1, 3, 2, 4, 0)
            n = rows * columns
            expected = patches.reshape(n, 768)
            torch.testing.assert_close(ours["patches"][i, :n], expected, rtol=1e-5, atol=1e-5)
            y, x = np.divmod(np.arange(n), columns)
            assert ours["patch_coord"][i, :n].tolist() == np.stack([y, x], 1).tolist()
        assert not ours["patches"][0, 6:].any()
        assert not ours["patch_coord"][0, 6:].any()
        assert ours["patch_valid"].sum(1).tolist() == [6, 9]
        assert ours["patch_coord"].dtype == torch.int64

    def test_pixels_of_other_tokens_are_left_out(self):
        token = np.ones((32, 32), int)
        token[:16] = 0
        token[16:, :8] = 0  # an L, whose box is the picture
        batch = visual_batch([token], 32)
        batch["pixel_values"] = torch.where(torch.from_numpy(token == 0), 1.0, 9.0)[None, None]
        batch["pixel_values"] = batch["pixel_values"].expand(1, 3, 32, 32)
        own = to_naflex(batch, 16)["patches"][0, 0]
        assert set(own.unique().tolist()) == {0.0, 1.0}
        whole = to_naflex(batch, 16, fill=None)["patches"][0, 0]
        assert set(whole.unique().tolist()) == {1.0, 9.0}

    def test_coordinates_lie_in_the_grid(self):
        batch = visual_batch([blobs(s, 40 + s, 60, 12) for s in range(4)], 64)
        ours = to_naflex(batch, 16)
        limit = -(-batch["valid_sizes"] // 16)[:, None]
        assert (ours["patch_coord"] >= 0).all()
        assert (ours["patch_coord"] < limit).all()

    def test_other_batches_are_refused(self):
        batch = visual_batch([grid(32, 32, 16)], 32)
        with pytest.raises(ConfigError, match="bytes"):
            to_naflex({**batch, "pixel_values": batch["pixel_values"].byte()})
        del batch["visual_token_mask"]
        with pytest.raises(ConfigError, match="packed"):
            to_naflex(batch)

    def test_timm_model_reads_it(self):
        timm = pytest.importorskip("timm")
        from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

        assert timm.__version__
        config = NaFlexVitCfg(
            patch_size=16,
            embed_dim=32,
            depth=1,
            num_heads=2,
            pos_embed="learned",
            pos_embed_use_grid_sample=True,
            pos_embed_grid_size=(8, 8),
        )
        torch.manual_seed(0)
        model = NaFlexVit(config, num_classes=3).eval()
        batch = visual_batch([blobs(0, 64, 64, 9), blobs(1, 48, 64, 5)], 64)
        ours = to_naflex(batch, 16)
        logits = model(ours["patches"], ours["patch_coord"], ours["patch_valid"])
        alone = {key: value[1:, :5] for key, value in ours.items()}
        single = model(alone["patches"], alone["patch_coord"], alone["patch_valid"])
        torch.testing.assert_close(logits[1:], single, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    return TextEncoder(TextConfig(byte_tokenizer(), caption="text"))


def text_batch(text: TextEncoder, *, packed: bool = False) -> dict[str, torch.Tensor]:
    visual = visual_batch([blobs(0, 48, 48, 7), blobs(1, 32, 48, 4)], 48)
    visual["sample_index"] = torch.tensor([4, 5])
    counts = visual["num_visual_tokens"].tolist()
    texts = ["A red ball on the grass", "Two dogs"]
    rows = [text.encode({"text": t}).expand([n]) for t, n in zip(texts, counts, strict=True)]
    from subtok_data.text import pad_rows

    side = text.config.padding_side
    batch = {**pad_rows(rows, text.pad_id, padding_side=side), **visual}
    return pack_batch(batch) if packed else batch


class TestLlava:
    @pytest.mark.parametrize("packed", [False, True])
    def test_trains_and_gradients_reach_encoder_and_embedding(self, text, packed):
        model = small_llava(len(text.config.tokenizer))
        assert use_subobject_tokens(model, text.placeholder_id) is model
        batch = text_batch(text, packed=packed)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        losses = []
        for _ in range(8):
            loss = model(**model_inputs(batch, model)).loss
            optimizer.zero_grad()
            loss.backward()
            features = model.model.subobject_features
            for part in (features.embedding, features.encoder):
                gradients = [p.grad for p in part.parameters() if p.grad is not None]
                assert sum(float(g.abs().sum()) for g in gradients) > 0
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.8 * losses[0]

    @torch.no_grad()
    def test_is_the_language_model_on_merged_embeddings(self, text):
        model = small_llava(len(text.config.tokenizer)).eval()
        encoder = FeatureEncoder(nn.Conv2d(3, 12, 8, stride=8), stride=8)
        embedding = TokenEmbedding(12, 32, shape_size=4, stride=8)
        use_subobject_tokens(model, text.placeholder_id, encoder=encoder, embedding=embedding)
        batch = text_batch(text)
        logits = model(**model_inputs(batch, model)).logits
        from subtok_data.nn import merge_visual_tokens

        vectors = embedding(encoder(batch["pixel_values"]), batch)
        ids = batch["input_ids"]
        embeds = merge_visual_tokens(
            model.get_input_embeddings()(ids), ids, vectors, text.placeholder_id
        )
        plain = LlamaForCausalLM(model.config.text_config)
        plain.model.load_state_dict(model.model.language_model.state_dict())
        plain.lm_head.load_state_dict(model.lm_head.state_dict())
        expected = plain.eval()(
            inputs_embeds=embeds, attention_mask=batch["attention_mask"], use_cache=False
        ).logits
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(logits[real], expected[real], rtol=1e-4, atol=1e-5)

    @torch.no_grad()
    def test_packed_logits_equal_padded(self, text):
        model = small_llava(len(text.config.tokenizer)).eval()
        use_subobject_tokens(model, text.placeholder_id)
        padded, packed = text_batch(text), text_batch(text, packed=True)
        expected = model(**model_inputs(padded, model)).logits[padded["attention_mask"].bool()]
        ours = model(**model_inputs(packed, model)).logits[0]
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)

    def test_generates(self, text):
        model = small_llava(len(text.config.tokenizer)).eval()
        use_subobject_tokens(model, text.placeholder_id)
        left = TextEncoder(text.config.for_generation())
        ids = model.generate(
            **generation_inputs(text_batch(left), model), max_new_tokens=3, do_sample=False
        )
        assert ids.shape[0] == 2
        assert 1 <= ids.shape[1] <= 3

    def test_state_and_placement_follow_the_model(self, text):
        model = small_llava(len(text.config.tokenizer))
        use_subobject_tokens(model, text.placeholder_id)
        names = model.state_dict()
        assert any("subobject_features.embedding" in name for name in names)
        assert not any("multi_modal_projector" in name for name in names)
        model.to(torch.bfloat16)
        loss = model(**model_inputs(text_batch(text), model)).loss
        assert torch.isfinite(loss)

    def test_inputs_are_what_forward_takes(self, text):
        model = small_llava(len(text.config.tokenizer))
        use_subobject_tokens(model, text.placeholder_id)
        batch = {**text_batch(text), "url": ["a", "b"]}
        chosen = model_inputs(batch, model)
        assert {"input_ids", "labels", "pixel_values", "visual_token_map"} <= chosen.keys()
        assert not {"sample_index", "url", "mm_token_type_ids"} & chosen.keys()
        wrapped = torch.nn.DataParallel(model)
        assert model_inputs(batch, wrapped).keys() == chosen.keys()
        assert model_inputs(text_batch(text, packed=True), model)["use_cache"] is False
        assert model_inputs(batch, lambda **kwargs: None) == batch

    def test_counts_that_differ_are_an_error(self, text):
        model = small_llava(len(text.config.tokenizer))
        use_subobject_tokens(model, text.placeholder_id)
        batch = text_batch(text)
        batch["input_ids"][0, 3] = 5
        with pytest.raises(Exception, match="do not match"):
            model(**model_inputs(batch, model))

    def test_pixels_without_tokens_are_refused(self, text):
        model = small_llava(len(text.config.tokenizer))
        use_subobject_tokens(model, text.placeholder_id)
        batch = text_batch(text)
        with pytest.raises(ConfigError, match="model_inputs"):
            model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"])

    def test_grid_models_and_others_are_refused(self, text):
        from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = Qwen2VLConfig(
            text_config={
                **small,
                "num_key_value_heads": 2,
                "intermediate_size": 16,
                "vocab_size": 30,
            },
            vision_config={"embed_dim": 16, "depth": 1, "num_heads": 2, "hidden_size": 16},
        )
        with pytest.raises(ConfigError, match="'qwen2_vl' places its visual tokens on a grid"):
            use_subobject_tokens(Qwen2VLForConditionalGeneration(config), 5)
        config = LlamaConfig(
            vocab_size=9,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
        with pytest.raises(ConfigError, match="'llama' is not a LLaVA-type model"):
            use_subobject_tokens(LlamaForCausalLM(config), 5)

    def test_models_without_a_place_for_the_placeholder_are_refused(self, text):
        model = small_llava(text.placeholder_id)  # made before the tokens were added
        with pytest.raises(ConfigError, match=r"model\.resize_token_embeddings\("):
            use_subobject_tokens(model, text.placeholder_id)
        with pytest.raises(ConfigError, match="placeholder_id=None: expected a whole number"):
            use_subobject_tokens(model, None)  # type: ignore[arg-type]
        model.resize_token_embeddings(len(text.config.tokenizer))
        assert use_subobject_tokens(model, text.placeholder_id) is model

    def test_missing_widths_are_asked_for(self, text):
        model = small_llava(len(text.config.tokenizer))
        with pytest.raises(ConfigError, match="feature_dim="):
            use_subobject_tokens(model, 5, encoder=FeatureEncoder())
        model.config.vision_feature_layer = [-1, -2]
        with pytest.raises(ConfigError, match="one layer"):
            use_subobject_tokens(model, 5)
