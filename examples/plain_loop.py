"""Tokenize while collating, in a plain PyTorch loop: only a ``collate_fn`` is ours.

Learns which of four photos a crop comes from, through one vector per token:

    python examples/plain_loop.py --steps 40
"""

from __future__ import annotations

import argparse

import torch
from skimage import data
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from subtok_data import SubobjectCollator, SubobjectDataset, SubobjectTokenizer, TokenEmbedding


class Classifier(nn.Module):
    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, width, kernel_size=8, stride=8)
        self.tokens = TokenEmbedding(width, width, shape_size=8)
        self.head = nn.Linear(width, classes)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        features = self.encoder(batch["pixel_values"])  # (I, C, h, w)
        tokens = self.tokens(features, batch, layout="padded")  # (I, N, C), 0 on padding
        return self.head(tokens.sum(dim=1) / batch["num_visual_tokens"][:, None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(0)
    photos = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    rows = [{"image": photo, "label": label} for label, photo in enumerate(photos)] * 100
    # Augmentation comes before tokenization: each crop is cut anew.
    crops = SubobjectDataset(rows, transform=v2.RandomResizedCrop(args.size, scale=(0.2, 1.0)))
    collator = SubobjectCollator(SubobjectTokenizer(num_tokens=16, size=args.size), shape_size=8)
    loader = DataLoader(crops, 8, shuffle=True, num_workers=args.workers, collate_fn=collator)
    model = Classifier(classes=len(photos))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step, batch in zip(range(args.steps), loader, strict=False):
        loss = nn.functional.cross_entropy(model(batch), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss:.3f}")


if __name__ == "__main__":
    main()
