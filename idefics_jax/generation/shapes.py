"""Sizes that programs were compiled for: a smaller batch runs with a larger one's programs where that costs less.

A last batch of four prompts after batches of eight would have programs of its own, which take seconds to compile; as
eight rows, four of them empty, it takes the others'. No padding changes an answer.
"""

from collections.abc import Hashable
from typing import Any, NamedTuple

import jax

# Operations that are done in about the time that a call's programs take to compile.
_COMPILING = {"cpu": 3e11}
_COMPILING_ELSEWHERE = 1e15


class Sizes(NamedTuple):
    """Sizes of a call's arrays, each filled up to its bucket.

    Attributes:
        rows: prompts.
        columns: tokens that are read.
        images: image slots in each row.
        slots: for tokens in the cache.
        room: for new tokens in the answer.
    """

    rows: int
    columns: int
    images: int
    slots: int
    room: int


class Shapes:
    """Sizes that a model's programs were compiled for, for calls that differ in nothing else.

    Attributes:
        used: all of them.
        spent: by sizes without programs of their own, the operations that were done for nothing so far. They get their
            own programs before these take longer than compiling.
    """

    def __init__(self) -> None:
        self.used: set[Sizes] = set()
        self.spent: dict[Sizes, float] = {}

    def fit(self, sizes: Sizes, new_tokens: int, parameters: int) -> Sizes:
        """The sizes to run with: these, or larger ones whose programs there are."""

        def operations(sizes: Sizes) -> float:
            return 2.0 * parameters * sizes.rows * (sizes.columns + new_tokens)

        larger = [used for used in self.used if all(x >= y for x, y in zip(used, sizes, strict=True))]
        if larger and sizes not in self.used:
            best = min(larger, key=operations)
            spent = self.spent.get(sizes, 0.0) + operations(best) - operations(sizes)
            if spent <= _COMPILING.get(jax.default_backend(), _COMPILING_ELSEWHERE):
                self.spent[sizes] = spent
                return best
        self.used.add(sizes)
        return sizes


def shapes_of(model: Any, call: Hashable) -> Shapes:
    """The sizes that this model has programs for, for calls of this kind."""
    shapes = getattr(getattr(model, "_beside", None), "shapes", {})
    return shapes.setdefault(call, Shapes())
