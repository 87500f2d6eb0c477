"""Small stores of tokens, written row by row."""

from __future__ import annotations

from subtok_data.data.store import StoreMeta, TokenWriter

__all__ = ["store_rows"]


def store_rows(folder, rows, *, config=None, config_hash="abc", shard_rows=256, **options):
    """Write a finished store of tokens, and return its writer."""
    meta = StoreMeta(
        config=config or {},
        config_hash=config_hash,
        rows=len(rows),
        shard_rows=shard_rows,
        device="cpu",
        dtype="float32",
        **options,
    )
    writer = TokenWriter(folder, meta)
    for shard in range(meta.num_shards):
        own = meta.shard_range(shard)
        writer.write(shard, rows[own.start : own.stop])
    writer.finish()
    return writer
