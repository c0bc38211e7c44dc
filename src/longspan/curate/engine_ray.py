"""Vectors by Ray Data: actors on the machines of a cluster, or of a Ray of this machine's own, each with the teacher.

A row of the data set is a block, pickled, and so is a row of the result: a block is never divided, and texts and
vectors come through bit for bit.
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

from longspan.curate.engine import Block, Embedded, Engine, RemoteTeacher, embed_block
from longspan.embedder import Embedder
from longspan.errors import LongspanError

BLOCKS_PER_ACTOR = 512
"""A data set has so many blocks for each actor: what lies in Ray's memory, or on its disk, at a time. The actors of
the next data set load the teacher anew, so it should take a GPU some minutes."""
MAX_ATTEMPTS = 3
"""Ray Data restarts actors that die without end. A block over which so many have died is an error."""


class Actors(NamedTuple):
    """How many actors, and what each of them asks of Ray."""

    num: int
    num_cpus: int
    num_gpus: int


class RayEngine(Engine):
    """Actors of Ray Data.

    Args:
        count: of the actors (default: one for each GPU of the cluster, or, where it has none, for each of its cores).
        address: of a cluster (default: what RAY_ADDRESS says, or else a Ray of its own on this machine).

    Longspan has to be installed on all machines, and the teacher has to lie at the same place on them, or on the hub.
    A Ray to which this process is already connected is used, and stays.
    """

    def __init__(self, teacher: RemoteTeacher, count: int | None = None, address: str | None = None) -> None:
        super().__init__()
        self._teacher, self._count = teacher, count
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        self._ray = _import_ray()
        self._connected = False

    def __enter__(self) -> Self:
        """
        Raises:
            LongspanError: there is no such cluster, or it has too few cores or GPUs.
        """
        if not self._ray.is_initialized():
            self._connect()
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        try:
            self._actors = share(nodes, self._count, self._address)
        except LongspanError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._connected:
            self._ray.shutdown()
            self._connected = False

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone unless the user wants it
        own = {"include_dashboard": False} if self._address == "local" else {}
        try:
            self._ray.init(address=self._address, log_to_driver=False, logging_level="ERROR", **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise LongspanError(
                f"cannot connect to Ray: {str(error).splitlines()[0]}",
                where=self._address,
                remedy="name a running cluster by --ray-address HOST:6379 (`ray start --head` begins one); if it "
                "asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to its own; or, for a Ray on this "
                "machine alone, name none and unset RAY_ADDRESS",
            ) from None
        self._connected = True

    def _embed(self, blocks: Iterable[Block]) -> Iterator[Embedded]:
        left = iter(blocks)
        while some := list(itertools.islice(left, BLOCKS_PER_ACTOR * self._actors.num)):
            yield from self._round(some)

    def _round(self, blocks: list[Block]) -> Iterator[Embedded]:
        import ray.data

        with warnings.catch_warnings():  # of Ray about itself, when it is configured
            warnings.simplefilter("ignore", DeprecationWarning)
            context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # there is one for the whole step
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        attempts = ray.remote(num_cpus=0)(_Attempts).remote(MAX_ATTEMPTS)
        rows = [{"block": pickle.dumps(block)} for block in blocks]
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,  # pyright: ignore[reportArgumentType]
            fn_constructor_args=(self._teacher, self._actors.num_cpus, self._actors.num_gpus, attempts),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=self._actors.num),
            num_cpus=self._actors.num_cpus,
            num_gpus=self._actors.num_gpus,
        )
        for row in results.iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, _Failure):
                raise LongspanError(result.what, where=result.where or self._address, remedy=result.remedy)
            yield result


class _Failure(NamedTuple):
    """A LongspanError on its way between machines."""

    what: str
    where: str
    """Empty: the Ray itself."""
    remedy: str


class _Attempts:
    """An actor that counts how often each block was begun."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> bool:
        """Whether the block may be tried once more."""
        self._begun[number] += 1
        return self._begun[number] <= self._maximum


class _Actor:
    """Ray makes one for each actor and calls it with the batches."""

    def __init__(self, teacher: RemoteTeacher, num_threads: int, num_gpus: int, attempts: Any) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if num_threads > 1 else "false"
        os.environ["RAYON_NUM_THREADS"] = str(num_threads)
        self._teacher, self._num_threads, self._attempts = teacher, num_threads, attempts
        self._device = "cuda" if num_gpus else "cpu"  # Ray shows an actor its own GPU and no other
        self._embedder: Embedder | None = None

    def __call__(self, batch: Any) -> dict[str, list[bytes]]:
        return {"result": [pickle.dumps(self._result(pickle.loads(row))) for row in batch["block"].to_pylist()]}

    def _result(self, block: Block) -> Embedded | _Failure:
        import ray

        if not ray.get(self._attempts.begin.remote(block.number)):
            return _Failure(
                "workers of Ray died, perhaps because memory ran out",
                "",
                "run the same command again: it goes on where it was; with fewer --processes it needs less memory",
            )
        try:
            # Not when the actor is made: an error of that would not come back in words.
            self._embedder = self._embedder or self._teacher.loaded(self._device, self._num_threads)
            return embed_block(self._embedder, block)
        except LongspanError as error:
            return _Failure(error.what, error.where, error.remedy)


def share(nodes: Sequence[Mapping[str, float]], count: int | None, where: str) -> Actors:
    """Share a cluster's machines among so many actors: each has a GPU, or as many cores as all of them can have.

    Raises:
        LongspanError: there are too few for `count`.
    """
    cores, gpus = ([int(node.get(kind, 0)) for node in nodes] for kind in ("CPU", "GPU"))
    there, things = (sum(gpus), "GPUs") if any(gpus) else (sum(cores), "cores")
    count = count or there
    if not 1 <= count <= there:
        raise LongspanError(
            f"{count} processes do not fit on Ray's {there} {things}",
            where=where,
            remedy=f"ask for at most {there} --processes, or leave it out",
        )
    if any(gpus):
        return Actors(count, 1, 1)
    # An actor lies on one machine.
    num_cpus = next(size for size in range(max(cores), 0, -1) if sum(num // size for num in cores) >= count)
    return Actors(count, num_cpus, 0)


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise LongspanError(
            "Ray is not installed", where="package ray", remedy="pip install 'longspan[ray]', or leave out --engine ray"
        ) from None
    return ray
