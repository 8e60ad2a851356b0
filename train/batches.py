"""Rows from the input pipeline as batches on the devices, each host making only the rows that its devices hold."""

from collections.abc import Generator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from idefics_jax.data.sources import Source
from idefics_jax.parallel.mesh import on_mesh, shards, spec
from idefics_jax.processing.processor import IdeficsProcessor

from .config import TrainConfig
from .data.packing import STATE_SIZE, Row
from .data.pipeline import training_rows
from .step import Batch


class Layout(NamedTuple):
    """How a step's rows lie: `accumulation` parts of `rows` each, split over the mesh; row r is stream r's.

    Attributes:
        accumulation, rows: sizes of the batch's leading axes.
        sharding: of every array of a batch; None without a mesh.
    """

    accumulation: int
    rows: int
    sharding: NamedSharding | None

    def mine(self) -> list[int]:
        """The rows of a step that this process's devices hold."""
        total = self.accumulation * self.rows
        if self.sharding is None:
            return list(range(total))
        numbers = np.arange(total).reshape(self.accumulation, self.rows)
        held = self.sharding.addressable_devices_indices_map(numbers.shape).values()
        return sorted({int(row) for index in held for row in np.ravel(numbers[index])})

    def put(self, rows: Mapping[int, np.ndarray]) -> jax.Array:
        """One array `[accumulation, rows, ...]` of what each row of this process has."""
        shape = (self.accumulation, self.rows, *next(iter(rows.values())).shape)

        def part(index: Any) -> np.ndarray:
            numbers = np.arange(self.accumulation * self.rows).reshape(shape[:2])[index[:2]]
            return np.stack([np.stack([rows[int(row)] for row in line]) for line in numbers])

        if self.sharding is None:
            return jax.device_put(part((slice(None), slice(None))))
        return jax.make_array_from_callback(shape, self.sharding, part)

    def batch(self, rows: Mapping[int, Row]) -> Batch:
        """The batch of a step's rows."""
        return Batch(
            *(self.put({number: getattr(row, name) for number, row in rows.items()}) for name in Batch._fields)
        )


def make_layout(config: TrainConfig, mesh: Mesh | None) -> Layout:
    """How this run's batches lie.

    Raises:
        ValueError: the rows cannot be divided.
    """
    rows, left = divmod(config.batch_size, config.accumulation)
    with on_mesh(mesh):
        pieces = shards("batch")
        layout = spec(None, "batch")
    if left or rows % pieces or not rows:
        unit = config.accumulation * pieces
        nearest = max(unit, round(config.batch_size / unit) * unit)
        raise ValueError(
            f"--batch-size {config.batch_size} cannot be divided into --accumulation {config.accumulation} parts over "
            f"{pieces} devices (data x fsdp); {nearest} can."
        )
    sharding = None if mesh is None or layout is None else NamedSharding(mesh, layout)
    return Layout(config.accumulation, rows, sharding)


class Step(NamedTuple):
    """A step's batch, and this process's rows by their number, which say how the data goes on."""

    batch: Batch
    rows: dict[int, Row]


def training_batches(
    config: TrainConfig,
    processor: IdeficsProcessor,
    layout: Layout,
    streams: np.ndarray | None,
    sources: list[Source] | None = None,
) -> Generator[Step, None, None]:
    """Batches for ever, from the start or from where the streams `[rows, numbers]` of a checkpoint were.

    Raises:
        ValueError: the checkpoint had another number of rows.
    """
    total, mine = layout.accumulation * layout.rows, layout.mine()
    if streams is not None and len(streams) != total:
        raise ValueError(
            f"The checkpoint has {len(streams)} streams of data and --batch-size is {total}; a run goes on with the "
            "batch size that it began with."
        )
    states = None if streams is None else {number: streams[number] for number in mine}
    rows = training_rows(
        config.data, processor, seed=config.seed, streams=total, mine=mine, states=states, sources=sources
    )
    try:
        while True:
            step = {number: next(rows) for number in mine}
            yield Step(layout.batch(step), step)
    finally:
        rows.close()


def streams_after(step: Step, layout: Layout) -> np.ndarray:
    """Where every stream of all processes is after the step, `[rows, numbers]` int32."""
    states = np.full((layout.accumulation * layout.rows, STATE_SIZE), np.iinfo(np.int32).min, np.int32)
    for number, row in step.rows.items():
        states[number] = row.state
    if jax.process_count() == 1:
        return states
    return np.max(multihost_utils.process_allgather(states), axis=0)  # of whoever holds the row
