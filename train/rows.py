"""Rows that suit the records: how many tokens they need, how many records fill one, and how many steps an epoch is."""

import math
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from idefics_jax.data.sources import Source
from idefics_jax.processing.processor import IdeficsProcessor

from .config import LONGEST_ROW, DataConfig, TrainConfig
from .data.examples import example_of

LOOKED_AT = 256  # records
UNIT = 16  # tokens, of which a row has a multiple


class Looked(NamedTuple):
    """Sizes of some records' documents.

    Attributes:
        tokens, images: of each document.
        records: number of all records, looked at or not.
    """

    tokens: list[int]
    images: list[int]
    records: int


def look(sources: list[Source], processor: IdeficsProcessor, config: DataConfig) -> Looked:
    """Tokenize some records, evenly spaced over all sources; those that cannot be used are left out."""
    lengths = [len(source) for source in sources]
    total = sum(lengths)
    unlimited = replace(config, sequence_length=2**31 - 1)
    tokens, images = [], []
    for place in range(min(LOOKED_AT, total)):
        number, source = place * total // min(LOOKED_AT, total), 0
        while number >= lengths[source]:
            number, source = number - lengths[source], source + 1
        try:
            example = example_of(sources[source][number], sources[source].folder, processor, unlimited)
        except (ValueError, OSError):
            continue  # training names the records that cannot be used
        tokens.append(len(example.ids))
        images.append(len(example.images))
    return Looked(tokens, images, total)


def row_tokens(looked: Looked, config: DataConfig) -> int:
    """Return the tokens of a row that these records fill: its images run out when its tokens do."""
    if not looked.tokens:
        return LONGEST_ROW
    # A record that was not looked at may be longer, and would be left out.
    longest = max(looked.tokens) * (1 if len(looked.tokens) == looked.records else 1.5)
    wanted = longest
    if config.pack:
        together = config.max_images / fmean(looked.images) if any(looked.images) else math.inf
        wanted = max(longest, together * fmean(looked.tokens))
    return UNIT * math.ceil(min(wanted, max(LONGEST_ROW, longest)) / UNIT)


def records_per_row(looked: Looked, config: DataConfig) -> float:
    """Return how many records share a row on average, packed in the order of the files."""
    rows, tokens, images, count = 0, math.inf, 0, 0
    for length, pictures in zip(looked.tokens, looked.images, strict=True):
        if length > config.tokens:
            continue
        count += 1
        if not config.pack or tokens + length > config.tokens or images + pictures > config.max_images:
            rows, tokens, images = rows + 1, 0, 0
        tokens, images = tokens + length, images + pictures
    return count / rows if rows else 1.0


def fitted(config: TrainConfig, looked: Looked) -> TrainConfig:
    """Return the configuration with rows and steps as numbers, where the records decide them."""
    data = config.data
    if data.sequence_length is None:
        # A step that was compiled before knows nothing of the records.
        tokens = data.tokens if config.compiled is not None else row_tokens(looked, data)
        data = replace(data, sequence_length=tokens)
    steps = config.steps
    if config.epochs is not None:
        rows = config.epochs * looked.records / records_per_row(looked, data)
        steps = max(1, math.ceil(rows / config.batch_size))
    return replace(config, data=data, steps=steps, epochs=None)
