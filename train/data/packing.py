"""Documents into rows of a fixed length: never cut, the oldest first, then whichever fits in what is left."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from idefics_jax.processing.processor import IdeficsProcessor, image_mask

from ..config import DataConfig
from ..data.examples import Example

POOL = 16  # documents that wait for a row, among which one that fits is looked for
STATE_SIZE = 3 + POOL
HOPELESS = 1000  # records read for a row and found unusable, after which no row is expected any more
IGNORED = -100
PADDED_POSITION = 1  # as transformers counts padding; nothing sees it


class Row(NamedTuple):
    """Packed documents: `tokens` and `images` long whatever is in it. Labels are not shifted.

    input_ids, labels: `[tokens]` int32, padded at the right; a label is the id, or -100 where nothing is learnt.
    segment_ids: `[tokens]` int32, 1 for the first document's tokens and so on; 0: padding.
    position_ids: `[tokens]` int32, counted over the row, or over each document with segment masks; 1 in padding.
    image_attention_mask: `[tokens, images]` int8, 1 at the last image of the token's own document so far.
    pixel_values: `[images, height, width, 3]` uint8, zeros after the last image.
    state: `[STATE_SIZE]` int32, from which a stream goes on with the row after this one.
    bad: a line for each record that was skipped since the row before.
    read: records read since the row before, with those skipped.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    segment_ids: np.ndarray
    position_ids: np.ndarray
    image_attention_mask: np.ndarray
    pixel_values: np.ndarray
    state: np.ndarray
    bad: tuple[str, ...]
    read: int


class BadRecord(Exception):
    """A record that cannot be used; the message names it and says why."""


class Stream(Iterator[Row]):
    """Rows of the documents `first`, `first + step`, ... below `end`; the same ones after a restart from a row's state.

    Args:
        read: gives the example of a document's number, or raises BadRecord.
        decode: gives the pixels `[images, height, width, 3]` of a number and example, or the BadRecord that it is.
        apply: how `decode` is mapped over the documents of a row: `map`, or that of a pool of threads.

    Raises, when a row is asked for:
        RuntimeError: `HOPELESS` records went by without one that could be used, or all there are.
    """

    def __init__(
        self,
        read: Callable[[int], Example],
        decode: Callable[[tuple[int, Example]], np.ndarray | BadRecord],
        processor: IdeficsProcessor,
        config: DataConfig,
        first: int = 0,
        step: int = 1,
        end: int | None = None,
        state: np.ndarray | None = None,
        apply: Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]] = map,
    ):
        self._read, self._decode, self._apply = read, decode, apply
        self._processor, self._config = processor, config
        self._step, self._end = step, end
        self._next = first
        self._pool: list[tuple[int, Example]] = []
        self._bad: list[str] = []
        self._count = 0
        self._rows = 0
        if state is not None:
            self._next, pending = unpack_state(state, step)
            for number in pending:
                self._add(number)

    def __next__(self) -> Row:
        placed: list[tuple[int, Example]] = []
        pixels: list[np.ndarray] = []
        while chosen := self._choose([example for _, example in placed]):
            # Only now is it known which images are damaged; what they leave free is filled again.
            for document, decoded in zip(chosen, self._apply(self._decode, chosen), strict=True):
                if isinstance(decoded, BadRecord):
                    self._skip(decoded)
                else:
                    placed.append(document)
                    pixels.append(decoded)
        if not placed:
            if self._bad and not self._rows:
                raise RuntimeError(f"None of {self._count} records could be used; the last: {self._bad[-1]}")
            raise StopIteration
        state = pack_state(self._next, [number for number, _ in self._pool], self._step)
        row = make_row([example for _, example in placed], pixels, self._processor, self._config)
        row = row._replace(state=state, bad=tuple(self._bad), read=self._count)
        self._bad, self._count = [], 0
        self._rows += 1
        return row

    def _choose(self, placed: Sequence[Example]) -> list[tuple[int, Example]]:
        """Documents out of the pool that fit beside those `placed`, the oldest first."""
        tokens = self._config.tokens - sum(len(example.ids) for example in placed)
        images = self._config.max_images - sum(len(example.images) for example in placed)
        if not self._config.pack and placed:
            return []
        chosen: list[tuple[int, Example]] = []
        while True:
            self._refill()
            fitting = (
                place
                for place, (_, example) in enumerate(self._pool)
                if len(example.ids) <= tokens and len(example.images) <= images
            )
            place = next(fitting, None)
            if place is None:
                return chosen
            chosen.append(self._pool.pop(place))
            tokens -= len(chosen[-1][1].ids)
            images -= len(chosen[-1][1].images)
            if not self._config.pack:
                return chosen

    def _refill(self) -> None:
        while len(self._pool) < (POOL if self._config.pack else 1) and (self._end is None or self._next < self._end):
            self._count += 1
            self._next += self._step  # before reading, so that a record that cannot be read is passed
            self._add(self._next - self._step)

    def _add(self, number: int) -> None:
        try:
            self._pool.append((number, self._read(number)))
        except BadRecord as error:
            self._skip(error)

    def _skip(self, error: BadRecord) -> None:
        self._bad.append(str(error))
        if len(self._bad) >= HOPELESS:
            raise RuntimeError(f"{HOPELESS} records could not be used while one row was filled; the last: {error}")


def pack_state(next_number: int, pending: Sequence[int], step: int) -> np.ndarray:
    """`[STATE_SIZE]` int32: the next number in two words, how many are pending, and how many steps back each is."""
    back = [(next_number - number) // step for number in pending]
    high, low = divmod(next_number, 2**31)
    return np.array([high, low, len(back), *back, *[0] * (POOL - len(back))], np.int32)


def unpack_state(state: np.ndarray, step: int) -> tuple[int, list[int]]:
    """The next number and the pending ones.

    Raises:
        ValueError: another length, of a state that another version wrote.
    """
    if len(state) != STATE_SIZE:
        raise ValueError(f"The state of the data has {len(state)} words, not {STATE_SIZE}; another version wrote it.")
    high, low, count, *back = (int(word) for word in state)
    next_number = high * 2**31 + low
    return next_number, [next_number - steps * step for steps in back[:count]]


def make_row(
    examples: Sequence[Example], pixels: Sequence[np.ndarray], processor: IdeficsProcessor, config: DataConfig
) -> Row:
    """The row of documents that fit in it and their pixels, each `[images, height, width, 3]`; its state is empty."""
    tokens, images, size = config.tokens, config.max_images, processor.image_processor.image_size
    row = Row(
        input_ids=np.full(tokens, processor.tokenizer.pad_token_id, np.int32),
        labels=np.full(tokens, IGNORED, np.int32),
        segment_ids=np.zeros(tokens, np.int32),
        position_ids=np.full(tokens, PADDED_POSITION, np.int32),
        image_attention_mask=np.zeros((tokens, images), np.int8),
        pixel_values=np.zeros((images, size, size, 3), np.uint8),
        state=np.zeros(STATE_SIZE, np.int32),
        bad=(),
        read=0,
    )
    start, first_image = 0, 0
    for segment, (example, decoded) in enumerate(zip(examples, pixels, strict=True), 1):
        ids = np.array(example.ids, np.int32)
        here = slice(start, start + len(ids))
        its_images = slice(first_image, first_image + len(decoded))
        row.input_ids[here] = ids
        row.labels[here] = np.where(example.learnt, ids, IGNORED)
        row.segment_ids[here] = segment
        row.position_ids[here] = np.arange(len(ids)) + (0 if config.segment_masks else start)
        if config.segment_masks:
            row.labels[start] = IGNORED  # no token of its own document predicts it
        (seen,) = image_mask(ids[None], processor.image_token_id, processor.tokenizer.eos_token_id, len(decoded))
        row.image_attention_mask[here, its_images] = seen
        row.pixel_values[its_images] = decoded
        start, first_image = here.stop, its_images.stop
    return row
