"""A small model in training, and batches of packed random documents: what the tests of the training step work with."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from idefics_jax import IdeficsConfig, IdeficsImageProcessor, IdeficsProcessor
from tests.support.tiny_processor import tiny_processor
from tests.support.tiny_tokenizer import FAKE_TOKEN_ID, IMAGE_TOKEN_ID
from train.batches import Layout
from train.config import DataConfig, OptimizerConfig, TrainConfig
from train.data.examples import Example
from train.data.packing import Row, make_row
from train.optimizer import make_optimizer
from train.starting import abstract, load, model_config
from train.step import Batch, Objective, TrainState, init_state, make_train_step

#: Plain: float32, no dropout, nothing computed twice.
CONFIG = TrainConfig(
    out="",
    random="tiny",
    trainable="full",
    steps=100,
    dtype="float32",
    frozen_dtype="float32",
    remat="none",
    loss_chunk=8,
    data=DataConfig(sequence_length=24, max_images=2),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant"),
)

PROCESSOR = IdeficsProcessor(IdeficsImageProcessor(image_size=28), tiny_processor().tokenizer)

#: Rows of documents, each `(tokens, images)`: packed, padded, without images, with two.
ROWS = (((15, 1), (7, 0)), ((10, 0),), ((24, 2),), ((9, 1), (12, 1)))


def make_rows(
    rows: Sequence[Sequence[tuple[int, int]]] = ROWS, config: TrainConfig = CONFIG, seed: int = 0
) -> list[Row]:
    """Rows of random documents, whose first third is not learnt (a question); a document's content is its place's."""
    result = []
    for number, row in enumerate(rows):
        examples, pixels = [], []
        for place, (length, images) in enumerate(row):
            random = np.random.default_rng([seed, number, place])
            text = random.integers(3, 512, length - 2 - 2 * images).tolist()
            # The first image comes late, so that there is text that sees none.
            ids = [1, *text[:2], *[FAKE_TOKEN_ID, IMAGE_TOKEN_ID] * images, *text[2:], 2]
            examples.append(Example(ids, [index >= length // 3 for index in range(length)], [""] * images))
            pixels.append(random.integers(0, 256, (images, 28, 28, 3), np.uint8))
        result.append(make_row(examples, pixels, PROCESSOR, config.data))
    return result


def make_batch(rows: Sequence[Row] | None = None, parts: int = 1) -> Batch:
    """The rows as one step's batch, in so many parts."""
    rows = make_rows() if rows is None else rows
    return Layout(parts, len(rows) // parts, None).batch(dict(enumerate(rows)))


class SmallRun(NamedTuple):
    """A run at its start: `step` is compiled and leaves what it is given as it is."""

    config: IdeficsConfig
    objective: Objective
    state: TrainState
    frozen: Any
    step: Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, jax.Array]]]


def start(config: TrainConfig = CONFIG, made: optax.GradientTransformation | None = None, **changes: Any) -> SmallRun:
    """The run that a configuration and changes of it describe; `made`: an optimizer instead of the configuration's."""
    config = dataclasses.replace(config, **changes)
    architecture = model_config(config)
    if config.random is None:
        template, params, frozen = load(config, architecture, None)
    else:  # by NumPy: no program that makes weights needs to be compiled
        template, *shapes = abstract(config, architecture, None)
        params, frozen = jax.tree.map_with_path(random_weight, shapes)
    optimizer = make_optimizer(config.optimizer, config.steps) if made is None else made
    objective = Objective(template, config, PROCESSOR.image_processor, IMAGE_TOKEN_ID)
    state = jax.jit(lambda params: init_state(params, optimizer, config.ema is not None))(params)
    step = jax.jit(make_train_step(objective, optimizer))
    return SmallRun(architecture, objective, state, frozen, step)


def random_weight(keys: Sequence[Any], weight: jax.ShapeDtypeStruct) -> jax.Array:
    """A weight's values, from the end of its path: scales and gates around 1, everything else around 0."""
    *_, last = (key.key for key in keys[1:])
    values = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(keys[1:]).encode()))
    mean = 1 if last == "scale" or last.startswith("alpha") else 0
    return jnp.asarray(mean + 0.02 * values.standard_normal(weight.shape, np.float32), weight.dtype)


class Noted(NamedTuple):
    """The state of an optimizer, and the last step's gradients as it was given them."""

    gradients: Any
    inner: optax.OptState


def noting_gradients(optimizer: optax.GradientTransformation | None = None) -> optax.GradientTransformation:
    """An optimizer that keeps the last step's gradients in its state; by itself it changes nothing."""
    optimizer = optax.set_to_zero() if optimizer is None else optimizer

    def update(gradients: Any, state: Noted, params: Any = None) -> tuple[Any, Noted]:
        updates, inner = optimizer.update(gradients, state.inner, params)
        return updates, Noted(gradients, inner)

    return optax.GradientTransformation(
        lambda params: Noted(optax.tree.zeros_like(params), optimizer.init(params)), update
    )


def by_path(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree nested by path, by their paths."""
    return {"/".join(key.key for key in keys): np.asarray(leaf) for keys, leaf in jax.tree.leaves_with_path(tree)}
