"""The rows that a host trains on, the same ones however many processes or threads make them."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing import parent_process
from typing import Any

import grain
import numpy as np
from absl import flags

from idefics_jax.data.records import check_columns, open_sources
from idefics_jax.data.sources import Source
from idefics_jax.processing.processor import IdeficsProcessor

from ..config import DataConfig
from ..data.examples import Example, Question, example_of, question_of
from ..data.images import image_pixels
from ..data.order import documents
from ..data.packing import BadRecord, Row, Stream

SHARED_BYTES = 2**16  # arrays of this size go from a worker through shared memory, smaller ones through the pipe


@dataclass(frozen=True)
class Documents:
    """What a stream reads: documents by number. Picklable, for workers."""

    sources: list[Source]
    order: grain.MapDataset[tuple[int, int]]
    processor: IdeficsProcessor
    config: DataConfig
    seed: int | None
    """Of the crops; None: images are only resized."""

    def read(self, number: int) -> Example:
        """The document's tokens; raises BadRecord."""
        source, record = self._place(number)
        try:
            return example_of(source[record], source.folder, self.processor, self.config)
        except (ValueError, OSError) as error:
            raise BadRecord(f"{source.describe(record)}: {error}") from error

    def decode(self, document: tuple[int, Example]) -> np.ndarray | BadRecord:
        """The pixels of a document's images `[images, height, width, 3]`, uint8, or what is wrong with one of them."""
        number, example = document
        images = self.processor.image_processor
        pixels = np.empty((len(example.images), images.image_size, images.image_size, 3), np.uint8)
        for place, image in enumerate(example.images):
            random = None if self.seed is None else np.random.default_rng([self.seed % 2**32, number, place])
            try:
                pixels[place] = image_pixels(image, images, random)
            except Exception as error:  # damaged files make Pillow's decoders raise anything
                source, record = self._place(number)
                return BadRecord(f"{source.describe(record)}: {error}")
        return pixels

    def stream(self, **arguments: Any) -> Stream:
        return Stream(self.read, self.decode, self.processor, self.config, **arguments)

    def _place(self, number: int) -> tuple[Source, int]:
        place: Any = self.order[number]  # grain says it may be None, which only filters make
        source, record = place
        return self.sources[source], record


class Rows(grain.IterDataset[Row]):
    """Rows of the streams `mine` in turns, for ever; a worker process of grain's takes its part of the streams."""

    def __init__(self, documents: Documents, streams: int, mine: Sequence[int], states: Mapping[int, np.ndarray]):
        super().__init__()
        self._documents, self._streams, self._states = documents, streams, dict(states)
        self._mine = list(mine)

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """grain's protocol for datasets that divide themselves among worker processes."""
        if sequential_slice:
            raise ValueError("Rows can only be sliced in turns.")
        self._mine = self._mine[sl]

    def streams(self, **arguments: Any) -> list[Stream]:
        """Each from where it was."""
        return [
            self._documents.stream(first=number, step=self._streams, state=self._states.get(number), **arguments)
            for number in self._mine
        ]

    def __iter__(self) -> "RowIterator":
        return RowIterator(self.streams())


class RowIterator(grain.DatasetIterator[Row]):
    """One row of each stream in turns."""

    def __init__(self, streams: Sequence[Stream]):
        super().__init__()
        self._turns = cycle(streams)

    def __next__(self) -> Row:
        return next(next(self._turns))

    def get_state(self) -> dict[str, Any]:
        return {}  # each row carries its stream's

    def set_state(self, state: dict[str, Any]) -> None:
        raise NotImplementedError("Give training_rows the states of the last rows instead.")


def training_rows(
    config: DataConfig,
    processor: IdeficsProcessor,
    *,
    seed: int,
    streams: int,
    mine: Sequence[int],
    states: Mapping[int, np.ndarray] | None = None,
    sources: list[Source] | None = None,
) -> Generator[Row, None, None]:
    """Rows of the streams `mine` in turns, for ever: mine[0], mine[1], ..., mine[0], ...

    Stream s of all `streams` has the documents s, s + streams, s + 2 streams, ... of one order, so that hosts share
    the work by their `mine` alone. `states` has the last row's state of each stream that goes on; `sources` are those
    of `config`, where they are open already.

    The next row of every stream is made ahead: by `config.workers` processes, lowered to a divisor of the number of
    streams so that each has as many, or by threads of this one. Close the iterator (`.close()`) to end them.

    Raises:
        FileNotFoundError, ValueError: at once, as `open_sources`.
        RuntimeError: at a row, when records in plenty cannot be used, or a worker process died.
    """
    if not mine or not set(mine) <= set(range(streams)):
        raise ValueError(f"This host's streams {list(mine)} must be some of the {streams}.")
    sources = open_sources(config.train) if sources is None else sources
    check_columns(sources, config.template)
    made = Documents(
        sources, documents(sources, seed, shuffle=True), processor, config, seed if config.augment else None
    )
    rows = Rows(made, streams, mine, states or {})
    workers = max((n for n in range(1, config.workers + 1) if len(mine) % n == 0), default=0)
    return _in_processes(rows, workers, len(mine) // workers) if workers else _in_threads(rows.streams)


def evaluation_rows(config: DataConfig, processor: IdeficsProcessor, limit: int | None = None) -> Iterator[Row]:
    """The held-out rows in the order of the files, once, or the first `limit`; images are only resized.

    Raises:
        FileNotFoundError, ValueError: at once, as `open_sources`.
        RuntimeError: at the first row, that no record could be used.
    """
    made = _held_out(config, processor)

    def streams(**arguments: Any) -> list[Stream]:
        return [made.stream(end=len(made.order), **arguments)]

    return islice(_in_threads(streams), limit)


def questions(config: DataConfig, processor: IdeficsProcessor, count: int) -> list[Question]:
    """The first `count` held-out records that have an answer, or as many as there are, whose images can be read.

    Raises:
        FileNotFoundError, ValueError: as `open_sources`.
    """
    found: list[Question] = []
    for source in _held_out(config, processor).sources:
        for record in range(len(source)):
            if len(found) == count:
                return found
            with suppress(ValueError, OSError):  # the rows say which records are bad
                question = question_of(source[record], source.folder, processor, config)
                for image in question.images:
                    processor.image_processor.load(image)
                found.append(question)
    return found


def _held_out(config: DataConfig, processor: IdeficsProcessor) -> Documents:
    sources = open_sources(config.eval)
    check_columns(sources, config.template)
    return Documents(sources, documents(sources, 0, shuffle=False), processor, config, seed=None)


def _in_threads(make_streams: Callable[..., list[Stream]]) -> Generator[Row, None, None]:
    """The rows of the streams in turns, each stream one row ahead; streams and images share the processors."""
    threads = os.cpu_count() or 1
    # Two pools: a stream waits for its images, which must not wait for a thread behind other streams.
    decoders, packers = ThreadPoolExecutor(threads, "decode"), ThreadPoolExecutor(threads, "pack")
    try:
        streams = make_streams(apply=decoders.map)
        coming = deque(packers.submit(next, stream, None) for stream in streams)
        for stream in cycle(streams):
            row = coming.popleft().result()
            if row is None:
                return
            coming.append(packers.submit(next, stream, None))
            yield row
    finally:
        packers.shutdown(cancel_futures=True)
        decoders.shutdown()


def _in_processes(rows: Rows, workers: int, ahead: int) -> Generator[Row, None, None]:
    """The same from worker processes, each `ahead` rows ahead."""
    if not flags.FLAGS.is_parsed():  # grain asks for its flags, which are parsed only where absl runs the program
        flags.FLAGS(["train"])
    options = grain.experimental.DatasetOptions(min_shm_size=SHARED_BYTES)
    shared = grain.experimental.WithOptionsIterDataset(rows, options)
    iterator = iter(shared.mp_prefetch(grain.MultiprocessingOptions(workers, ahead), _start_worker))
    try:
        for row in iterator:
            # Copied, so that the shared memory, of which containers have little, is free at once.
            yield Row._make(np.array(part) if isinstance(part, np.ndarray) else part for part in row)
    finally:
        iterator.close()


def _start_worker(number: int, count: int) -> None:
    """In a worker: only the parent is interrupted or terminated by hand, and the worker ends when the parent has."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
