"""Which support examples a prompt shows, and with which answer."""

import zlib

import numpy as np
from jaxtyping import Float

from idefics_jax.evaluation.examples import Example, Id
from idefics_jax.evaluation.prompting import Shot


def generator(seed: int, id: Id, purpose: str) -> np.random.Generator:
    """Random numbers of one query alone: other queries, their order and batches do not change them."""
    return np.random.default_rng([seed, zlib.crc32(f"{purpose} {id}".encode())])


def first(count: int, support: int, left_out: int | None) -> list[int]:
    """The first `count` of the support examples without the one that is `left_out`."""
    return [index for index in range(min(support, count + 1)) if index != left_out][:count]


def at_random(count: int, support: int, left_out: int | None, random: np.random.Generator) -> list[int]:
    """`count` different support examples in random order."""
    others = support - (left_out is not None)
    chosen = random.choice(others, count, replace=False)
    return [int(index) + (left_out is not None and int(index) >= left_out) for index in chosen]


def nearest(
    count: int, support: Float[np.ndarray, "n d"], query: Float[np.ndarray, "d"], left_out: int | None
) -> list[int]:
    """The `count` support examples whose features are most like the query's, the nearest last (RICES)."""
    similarity = support @ query
    if left_out is not None:
        similarity[left_out] = -np.inf
    most = np.argpartition(-similarity, count - 1)[:count]
    return [int(index) for index in most[np.lexsort((-most, similarity[most]))]]


def shown(example: Example, task: str, random: np.random.Generator) -> Shot:
    """A support example with the answer to show: a random caption, or the most frequent annotated answer."""
    if task == "captions":
        return Shot(example, example.references[random.integers(len(example.references))])
    return Shot(example, example.answer)
