"""Shards on many machines: actors of Ray Data, each of which makes whole shards.

The number of a shard goes to an actor, its report comes back, and nothing else passes Ray's object
store: the actor reads images and writes the file itself. Ray retries an actor that dies for ever,
and ``max_errored_blocks`` drops what failed without a word; so deaths are counted here, and errors
are rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import socket
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from importlib import import_module
from typing import Any

from subtok_data.data.pool import SegmentPool, make_pool
from subtok_data.data.store import ShardReport, Storage, TokenWriter, writer_name
from subtok_data.data.tokenize.decoding import RowGuard
from subtok_data.data.tokenize.shards import ShardJob, make_shards
from subtok_data.errors import ConfigError, SubtokError, WorkerCrashError

__all__ = ["RayEngine"]

_MOST_FAILED = 8  # shards: then the fault is not that of some images
_LISTED = 5
_DEADLY = 2  # actors that an image may end in decoding before it is a failed row


class RayEngine:
    """Make shards in actors of Ray Data, on this machine or a cluster.

    A cluster that runs is used: the one of ``RAY_ADDRESS``, or that of ``ray start`` on this
    machine. Else Ray is started here, and ended after. All machines must see the images and the
    folder of the tokens under the same names.

    A shard whose actor dies is made by the next actor, from what the first one has kept. An image
    that ends its segment worker twice becomes a failed row, as everywhere, and so does one that
    ends two actors in decoding; a shard that ends its actor otherwise, again and again, is given up
    and named.

    Parameters
    ----------
    actors : (int, int), optional
        Fewest and most actors; Ray starts more while shards wait and the cluster has room.
    gpus : float, optional
        GPUs of an actor: with 0.25 four share one. By default 1 if the tokenizer is on a GPU, else
        0.
    cpus : float, optional
        Cores of an actor: its threads, and one segment worker less unless their number is given.
    max_deaths : int, optional
        Actors that one shard may end before it is given up, beside those that an image ended.

    Raises
    ------
    ConfigError
        If an option is out of range, or the package ``ray`` is not installed.

    Examples
    --------
    >>> RayEngine(actors=(1, 8), gpus=0.25, cpus=6)  # doctest: +SKIP
    RayEngine(actors=(1, 8), gpus=0.25, cpus=6)
    """

    def __init__(
        self,
        actors: tuple[int, int] = (1, 8),
        *,
        gpus: float | None = None,
        cpus: float = 1,
        max_deaths: int = 3,
    ) -> None:
        fewest, most = actors
        if not 1 <= fewest <= most:
            raise ConfigError(
                f"actors={fewest}:{most}: give the fewest and the most actors, from 1 on"
            )
        if cpus <= 0 or (gpus is not None and gpus < 0) or max_deaths < 1:
            raise ConfigError(
                f"cpus={cpus}, gpus={gpus}, max_deaths={max_deaths}: give more than 0 cores, 0 "
                "GPUs or more, and 1 death or more"
            )
        try:
            import_module("ray.data")
        except ImportError as error:
            raise ConfigError(
                "this engine needs the package ray: pip install 'subtok-data[ray]'"
            ) from error
        self.actors = actors
        self.gpus = gpus
        self.cpus = cpus
        self.max_deaths = max_deaths

    def __repr__(self) -> str:
        return f"RayEngine(actors={self.actors}, gpus={self.gpus}, cpus={self.cpus})"

    def map_shards(self, job: ShardJob, shards: Sequence[int]) -> Iterator[ShardReport]:
        """Make shards in actors; see :class:`Engine`.

        Raises
        ------
        ConfigError
            If the tokenizer is on a GPU and the actors have none, or the other way round.
        WorkerCrashError
            If a shard ended its actor again and again; all others are made before.
        SubtokError
            If shards failed: which, and why. Eight of them end the run at once.
        """
        gpus = self._gpus_for(job)
        ray: Any = import_module("ray")
        failed: list[tuple[int, str]] = []
        died = False
        with (
            _running(ray),
            _stored_job(job) as described,
            closing(self._rows(ray, described, shards, gpus)) as rows,
        ):
            for row in rows:
                if row["report"]:
                    yield ShardReport(**json.loads(row["report"]))
                    continue
                failed.append((int(row["shard"]), str(row["error"])))
                died |= bool(row["died"])
                if len(failed) >= _MOST_FAILED:
                    break
        if failed:
            listed = "; ".join(f"shard {number}: {why}" for number, why in sorted(failed)[:_LISTED])
            more = f"; and {len(failed) - _LISTED} more" if len(failed) > _LISTED else ""
            raise (WorkerCrashError if died else SubtokError)(
                f"{len(failed)} of {len(shards)} shards were not made ({listed}{more}): what is "
                "stored is kept, run again to go on"
            )

    def _rows(
        self, ray: Any, described: dict[str, Any], shards: Sequence[int], gpus: float
    ) -> Generator[dict[str, Any]]:
        """What the actors say of each shard, in any order."""
        rows = ray.data.from_items(
            [{"shard": number} for number in shards], override_num_blocks=len(shards)
        )
        rows.context.max_errored_blocks = 0
        rows.context.enable_progress_bars = False
        fewest, most = self.actors
        fewest = min(fewest, len(shards))
        results = rows.map_batches(
            ShardActor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=fewest,
                max_size=max(fewest, min(most, len(shards))),
                max_tasks_in_flight_per_actor=2,  # with 1 the pool never grows
            ),
            num_cpus=self.cpus,
            num_gpus=gpus,
            fn_constructor_kwargs={
                **described,
                "starts": ray.remote(num_cpus=0)(Starts).remote(),
                "cpus": self.cpus,
                "max_deaths": self.max_deaths,
            },
        )
        yield from results.iter_rows()

    def _gpus_for(self, job: ShardJob) -> float:
        device = job.tokenizer.device.type
        on_gpu = device != "cpu"
        gpus = float(on_gpu) if self.gpus is None else self.gpus
        if on_gpu and not gpus:
            raise ConfigError(
                f"the tokenizer is on {device}, the actors have gpus=0: give each a share, such as "
                "gpus=0.25 (--gpus), or the tokenizer device='cpu'"
            )
        if gpus and not on_gpu:
            raise ConfigError(
                f"the actors have gpus={gpus:g}, but the tokenizer is on the CPU here, and device "
                "and precision belong to the store: start the run on a machine with a GPU, as with "
                "`ray job submit --entrypoint-num-gpus 0.1`"
            )
        return gpus


@contextmanager
def _running(ray: Any) -> Generator[None]:
    """Use the Ray that runs; else start it, and end it after."""
    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _stored_job(job: ShardJob) -> Generator[dict[str, Any]]:
    """Store a job beside the shards, since Ray loses large arguments with the process they are of.

    Yields
    ------
    dict
        Where it is: arguments of an actor.
    """
    cloudpickle: Any = import_module("ray.cloudpickle")  # also takes classes of __main__
    device = job.tokenizer.device
    job.tokenizer.to("cpu")  # on an accelerator a model is not pickled
    try:
        content: bytes = cloudpickle.dumps(job)
    finally:
        job.tokenizer.to(device)
    storage = job.writer.storage
    name = f"progress/ray/job-{writer_name()}-{time.time_ns():x}.pickle"
    with storage.create(name) as file:
        file.write(content)
    try:
        yield {
            "storage": storage,
            "name": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "device": device.type,
            "folder": os.getcwd(),
        }
    finally:
        with suppress(OSError):
            storage.delete(name)


class Starts:
    """Count how often each shard was begun and not ended, over the deaths of its actors.

    Examples
    --------
    >>> starts = Starts()
    >>> starts.begin(3)
    (0, [])
    >>> for _ in range(2):  # the actor dies, and then the next two over row 70
    ...     print(starts.begin(3))
    ...     starts.note(3, 70)
    (1, [])
    (1, [])
    >>> starts.begin(3)
    (1, [70])
    """

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._rows: dict[int, int] = {}  # that is decoded now, of each shard
        self._deaths: dict[int, int] = {}
        self._deadly: dict[int, list[int]] = {}

    def begin(self, shard: int) -> tuple[int, list[int]]:
        """Deaths of actors over a shard so far, and rows that have ended two of them."""
        before = self._counts.get(shard, 0)
        row = self._rows.pop(shard, None)
        if row is not None:  # then the row is to blame, not the shard
            before -= 1
            self._deaths[row] = self._deaths.get(row, 0) + 1
            if self._deaths[row] == _DEADLY:
                self._deadly.setdefault(shard, []).append(row)
        self._counts[shard] = before + 1
        return before, self._deadly.get(shard, [])

    def note(self, shard: int, row: int | None) -> None:
        """Keep which row of a shard is decoded now."""
        if row is None:
            self._rows.pop(shard, None)
        else:
            self._rows[shard] = row

    def end(self, shard: int) -> None:
        """Forget a shard, which is made or failed."""
        self._counts.pop(shard, None)
        self._rows.pop(shard, None)


class ShardActor:
    """Make one shard after the other; what goes wrong is a row too."""

    def __init__(
        self,
        *,
        storage: Storage,
        name: str,
        sha256: str,
        device: str,
        folder: str,
        starts: Any,
        cpus: float,
        max_deaths: int,
    ) -> None:
        with suppress(OSError):  # names may be relative to it; a URL or an absolute path is not
            os.chdir(folder)
        self._ray: Any = import_module("ray")
        self._storage = storage
        self._name = name
        self._sha256 = sha256
        self._device = device
        self._starts = starts
        self._cpus = max(1, int(cpus))
        self._max_deaths = max_deaths
        self._job: ShardJob | None = None
        self._pool: SegmentPool | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        number = int(batch["shard"][0])
        report, error = "", ""
        before, deadly = self._ray.get(self._starts.begin.remote(number))
        died = before >= self._max_deaths
        if died:
            error = f"it ended its process {before} times"
        else:
            try:
                report = json.dumps(asdict(self._make(number, before > 0, deadly)))
            except SubtokError as caught:
                error = str(caught)
            except Exception:
                error = traceback.format_exc()
        self._ray.get(self._starts.end.remote(number))
        return {"shard": [number], "report": [report], "error": [error], "died": [died]}

    def _make(self, number: int, carefully: bool, deadly: Sequence[int]) -> ShardReport:
        if self._job is None:
            self._job = self._load()
        job = self._guarded(self._job, number, deadly) if carefully else self._job
        try:
            return self._make_once(job, number)
        except WorkerCrashError:
            if carefully or not job.num_workers:
                raise
            # A decoding worker died, and nobody knows over which image: here it is noted.
            return self._make_once(self._guarded(job, number, deadly), number)

    def _guarded(self, job: ShardJob, number: int, deadly: Sequence[int]) -> ShardJob:
        """Decode here, and let the images be known that end this process."""

        def note(row: int | None) -> None:
            self._ray.get(self._starts.note.remote(number, row))

        return replace(job, num_workers=0, guard=RowGuard(note, frozenset(deadly)))

    def _make_once(self, job: ShardJob, number: int) -> ShardReport:
        if self._pool is None:  # its workers take seconds to start
            self._pool = make_pool(job.executor, job.segment_workers)
        try:
            (report,) = make_shards(job, [number], pool=self._pool)
        except BaseException:
            self._close_pool()  # it may be broken, or still have images of this shard
            raise
        if self._pool.restarts:  # so many are allowed for one shard, not for all
            self._close_pool()
        return report

    def _close_pool(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    def _load(self) -> ShardJob:
        import torch

        torch.set_num_threads(self._cpus)
        try:
            content = self._storage.read(self._name)
        except FileNotFoundError as error:
            raise SubtokError(
                f"{socket.gethostname()} does not see {str(self._storage)!r}, where the shards go: "
                "give a folder that all machines share under one name, or a URL"
            ) from error
        if hashlib.sha256(content).hexdigest() != self._sha256:
            raise SubtokError(f"{self._name} in {str(self._storage)!r} is not what was written")
        job: ShardJob = pickle.loads(content)
        tokenizer = job.tokenizer.to(self._device)
        meta = replace(
            job.writer.meta,
            device=tokenizer.device.type,
            dtype=str(tokenizer.dtype).removeprefix("torch."),
        )
        workers = job.segment_workers
        return replace(
            job,
            writer=TokenWriter(self._storage, meta),  # refuses another device or precision
            segment_workers=max(1, self._cpus - 1) if workers is None else workers,
        )
