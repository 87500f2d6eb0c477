"""What each of two ranks sees; run by torchrun from tests/integrations."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import torch
from helpers.batches import faulty_tokenizer
from helpers.faulty import CodedImages, shard_rows
from helpers.tiny_trainee import TinyModel
from helpers.workers import preload_worker_imports

from subtok_data import BatchPlan, SubobjectLoader

OPTIONS = {"executor": "thread", "segment_workers": 1, "prefetch_batches": 2}


def with_accelerate(out: dict) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    tokenizer = faulty_tokenizer()
    loader = SubobjectLoader(CodedImages(18), tokenizer, batch_size=4, shuffle=True, **OPTIONS)
    model = TinyModel()
    model, optimizer, prepared = accelerator.prepare(
        model, torch.optim.SGD(model.parameters(), 0.1), loader
    )
    out["kept"] = prepared is loader
    out["length"] = len(loader)
    gathered, syncs, own = [], [], []
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**{k: batch[k] for k in _FORWARD})["loss"]
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            syncs.append(accelerator.sync_gradients)
        own.append(batch["sample_index"].tolist())
        gathered += accelerator.gather_for_metrics(batch["sample_index"]).tolist()
    out.update(own=own, gathered=gathered, syncs=syncs)
    out["weights"] = [float(w) for w in accelerator.unwrap_model(model).head.weight.flatten()]
    lengths = [10 + 7 * (i % 5) for i in range(18)]
    for name, plan in {
        "by_length": BatchPlan(lengths, by_length=True),
        "budget": BatchPlan(lengths, by_length=True, max_batch_length=80),
    }.items():
        grouped = SubobjectLoader(
            CodedImages(18), tokenizer, batch_size=4, shuffle=True, plan=plan, **OPTIONS
        )
        out[name] = [batch["sample_index"].tolist() for batch in grouped]
        grouped.close()
    loader.close()


_FORWARD = ("pixel_values", "visual_token_areas", "visual_token_mask", "sample_index", "label")


def with_streams(out: dict) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    stream = datasets.IterableDataset.from_generator(
        shard_rows, gen_kwargs={"shards": [0, 1, 2, 3]}, features=features
    )
    for name, source in {"hugging_face": stream, "plain": _Plain()}.items():
        with SubobjectLoader(
            source, faulty_tokenizer(), batch_size=3, num_workers=2, **OPTIONS
        ) as loader:
            out[name] = [label for batch in loader for label in batch["label"].tolist()]


class _Plain:
    def __iter__(self):
        return shard_rows([0, 1, 2])


def with_lightning(out: dict, folder: Path) -> None:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = TinyModel()

        def training_step(self, batch, _):
            return self.model(**{k: batch[k] for k in _FORWARD})["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    loader = SubobjectLoader(
        CodedImages(17), faulty_tokenizer(), batch_size=4, shuffle=True, **OPTIONS
    )
    module = Module()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, loader)
    used = trainer.train_dataloader
    out["rebuilt"] = [type(used).__name__, type(used.batch_sampler.sampler).__name__]
    out["lightning"] = module.model.seen
    loader.close()
    used.close()


if __name__ == "__main__":
    preload_worker_imports()
    target = Path(sys.argv[1])
    found: dict = {}
    with_accelerate(found)
    with_streams(found)
    if importlib.util.find_spec("lightning"):
        with_lightning(found, target)
    rank = torch.distributed.get_rank()
    (target / f"rank{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
