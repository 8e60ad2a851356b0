"""The two forms of output: each writes units of tensors, in any order, from several threads, then what joins them."""

import threading
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import jax
import numpy as np

from idefics_jax.checkpoints.orbax_io import CHUNK_BYTES, PARAMS, ArrayWriter, merge
from idefics_jax.checkpoints.safetensors_io import batches, nbytes, read_header, shard_files, write_index, write_tensors
from idefics_jax.utils.paths import AnyPath

from .source import Checkpoint, Kind

UNIT_BYTES = 2**26  # of weights that are written to Orbax and recorded together, if there is more than one
DATABASES = 4  # that each process writes into: one stores a write at a time


class Unit(NamedTuple):
    """Tensors that are written and recorded together: what a resumed run does not do again.

    Attributes:
        name: of its record, and of its file if it has one.
        kinds: its tensors.
        nbytes: of them all, as written.
    """

    name: str
    kinds: dict[str, Kind]
    nbytes: int


class Target(Protocol):
    """What `convert` needs of a form of output."""

    units: list[Unit]

    def write(self, unit: Unit, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
        """Writes a unit's tensors, given in Hugging Face's axes; they are stored when it returns."""
        ...

    def read(self, unit: Unit, name: str) -> np.ndarray:
        """A tensor as it was written; OSError or ValueError if it was not."""
        ...

    def finish(self) -> None:
        """Makes a whole of the units that all processes wrote."""
        ...


class SafetensorsTarget:
    """Hugging Face's files; each is a unit."""

    def __init__(self, work: AnyPath, kinds: dict[str, Kind], max_shard_size: int):
        self.work = work
        shards = batches(list(kinds), [nbytes(*kind) for kind in kinds.values()], max_shard_size)
        files = zip(shard_files(len(shards)), shards, strict=True)
        self.units = [make_unit(file, {name: kinds[name] for name in shard}) for file, shard in files]

    def write(self, unit: Unit, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
        write_tensors(self.work / unit.name, unit.kinds, (tensor for _, tensor in tensors))

    def read(self, unit: Unit, name: str) -> np.ndarray:
        return read_header(self.work / unit.name)[name].read()

    def finish(self) -> None:
        write_index(self.work, {unit.name: unit.kinds for unit in self.units})


class OrbaxTarget:
    """One array for all layers of a kind; a unit is some neighbouring tensors.

    Raises:
        ValueError: the layers of a kind do not have one dtype.
    """

    def __init__(self, work: AnyPath, kinds: dict[str, Kind], source: Checkpoint, process: int, processes: int):
        self.params, self.processes, self.places = work / PARAMS, processes, source.places
        self.weights = []
        for weight in source.weights:
            names = [str(name) for name in weight.names.flat]
            dtypes = {kinds[name][0]: name for name in names}
            if len(dtypes) > 1:
                (one, first), (other, second) = list(dtypes.items())[:2]
                raise ValueError(f"{first} is {one} and {second} {other}, but they lie in one array; choose a --dtype.")
            leaf = jax.ShapeDtypeStruct(weight.leaf.shape, kinds[names[0]][0])
            self.weights.append(weight._replace(leaf=leaf))
        self.writers = [ArrayWriter(self.params, self.weights, process * DATABASES + n) for n in range(DATABASES)]
        groups = batches(list(kinds), [nbytes(*kind) for kind in kinds.values()], UNIT_BYTES)
        self.units = [
            make_unit(f"tensors-{number:05d}", {name: kinds[name] for name in group})
            for number, group in enumerate(groups, 1)
        ]
        self.numbers = {unit.name: number for number, unit in enumerate(self.units)}
        self.threads = threading.local()

    def write(self, unit: Unit, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
        writer, writing = self._writer(unit), []
        try:
            for name, tensor in tensors:
                weight, layer = self.places[name]
                writing += writer.write(weight.path, layer, weight.to_ours(tensor), self._buffer())
                del tensor  # its file's pages count as this process's memory, and it is about to wait
        finally:  # where the source fails, too, nothing goes on being written
            for future in writing:
                future.result()

    def read(self, unit: Unit, name: str) -> np.ndarray:
        weight, layer = self.places[name]
        return weight.to_theirs(self._writer(unit).read(weight.path, layer))

    def finish(self) -> None:
        merge(self.params, self.weights, self.processes * DATABASES)

    def _writer(self, unit: Unit) -> ArrayWriter:
        """The database that a unit is in: the same when a run is gone on with."""
        return self.writers[self.numbers[unit.name] % DATABASES]

    def _buffer(self) -> np.ndarray:
        """This thread's buffer."""
        if not hasattr(self.threads, "buffer"):
            self.threads.buffer = np.empty(CHUNK_BYTES, np.uint8)
        return self.threads.buffer


def make_unit(name: str, kinds: dict[str, Kind]) -> Unit:
    """A unit of these tensors."""
    return Unit(name, kinds, sum(nbytes(*kind) for kind in kinds.values()))
