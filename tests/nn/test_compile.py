"""A step with a token embedding is one graph, for any number of tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from subtok_data.nn import FeatureEncoder, TokenEmbedding, merge_visual_tokens

PLACEHOLDER = 9


def batch_of(seed: int, counts: list[int], side: int = 32) -> dict[str, torch.Tensor]:
    """Columns of tokens, straight from token maps."""
    generator = torch.Generator().manual_seed(seed)
    images, widest = len(counts), max(counts)
    n = torch.tensor(counts)
    columns = torch.arange(side) * n[:, None] // side
    boxes = torch.zeros(images, widest, 4)
    for i, count in enumerate(counts):
        for k in range(count):
            x = torch.nonzero(columns[i] == k)
            boxes[i, k] = torch.tensor([x.min() / side, 0, (x.max() + 1) / side, 1])
    mask = torch.arange(widest) < n[:, None]
    ids = torch.zeros(images, widest + 3, dtype=torch.int64)
    ids[:, 1 : 1 + widest][mask] = PLACEHOLDER
    return {
        "pixel_values": torch.randn(images, 3, side, side, generator=generator),
        "valid_sizes": torch.full((images, 2), side),
        "map_sizes": torch.full((images, 2), side),
        "visual_token_map": columns[:, None].expand(-1, side, -1).to(torch.int32).contiguous(),
        "num_visual_tokens": n,
        "visual_token_mask": mask,
        "visual_token_boxes": boxes,
        "input_ids": ids,
    }


class Step(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.encoder = FeatureEncoder(nn.Conv2d(3, 8, 8, stride=8), stride=8)
        self.embedding = TokenEmbedding(8, 16, shape_size=4, stride=8, **options)
        self.text = nn.Embedding(10, 16)
        self.head = nn.Linear(16, 1)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        vectors = self.embedding(self.encoder(batch["pixel_values"]), batch)
        ids = batch["input_ids"]
        return self.head(merge_visual_tokens(self.text(ids), ids, vectors, PLACEHOLDER)).mean()


@pytest.mark.parametrize("pooling", ["area", "bilinear"])
@pytest.mark.parametrize(
    "backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore")  # of compilers, about themselves
def test_a_step_is_one_graph_with_the_same_values(backend, pooling):
    torch._dynamo.reset()
    torch.manual_seed(0)
    step = Step(pooling=pooling)
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    for seed, counts in enumerate([[20, 25], [22, 17], [29, 24]]):
        batch = batch_of(seed, counts)
        expected = step(batch)
        gradients = torch.autograd.grad(expected, list(step.parameters()))
        with torch.compiler.set_stance("fail_on_recompile" if seed else "default"):
            loss = compiled(batch)
        torch.testing.assert_close(loss, expected)
        ours = torch.autograd.grad(loss, list(step.parameters()))
        for one, other in zip(ours, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_batches_that_do_not_fit_are_refused_in_a_graph_too():
    torch._dynamo.reset()
    compiled = torch.compile(Step(), fullgraph=True, dynamic=True, backend="eager")
    batch = batch_of(0, [3, 5])
    batch["input_ids"][0, 1] = 0
    with pytest.raises(RuntimeError, match="more or fewer placeholders"):
        compiled(batch)
    batch = batch_of(0, [3, 5])
    batch["visual_token_map"][0] = 7
    with pytest.raises(ValueError, match="num_visual_tokens is 3"):
        compiled(batch)
