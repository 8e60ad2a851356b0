"""The order that records are read in, as a function of a number: nothing to keep in memory, and any place is near."""

from collections.abc import Sequence
from itertools import accumulate

import grain
import numpy as np

from idefics_jax.data.sources import Source


class Places:
    """(source, record) by number, of the sources numbered `numbers` one after the other."""

    def __init__(self, sources: Sequence[Source], numbers: Sequence[int]):
        self._numbers = list(numbers)
        self._ends = np.array(list(accumulate(len(sources[number]) for number in numbers)), np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[int, int]:
        place = int(np.searchsorted(self._ends, index, side="right"))
        return self._numbers[place], int(index - (self._ends[place - 1] if place else 0))


def documents(sources: Sequence[Source], seed: int, shuffle: bool) -> grain.MapDataset[tuple[int, int]]:
    """The order of reading, as (source, record) by document number: for ever, shuffled anew in each epoch.

    Sources without weights make one epoch together, in which each record comes once. With weights each source is
    shuffled and repeated by itself. Without `shuffle`, it is the order of the files, once, whatever the weights.
    """
    if not shuffle:
        return grain.MapDataset.source(Places(sources, range(len(sources))))
    mixtures: dict[tuple[str, float] | None, list[int]] = {}
    for number, source in enumerate(sources):
        mixtures.setdefault(source.mixture, []).append(number)
    orders = [
        grain.MapDataset.source(Places(sources, numbers)).shuffle((seed + k) % 2**32).repeat()
        for k, numbers in enumerate(mixtures.values())
    ]
    if len(orders) == 1:
        return orders[0]
    return grain.MapDataset.mix(orders, [mixture[1] if mixture else 1.0 for mixture in mixtures])
