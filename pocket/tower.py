"""Teaches the pocket model's vision tower to tell things apart, before the whole model is trained.

    python -m pocket.tower FOLDER [--steps N]

As IDEFICS begins with CLIP's tower, this one does not begin with nothing: it classifies what is in the pictures of
FOLDER/train, by the mean of all patches, or of each quarter's where there are several things. FOLDER/tower-model is
FOLDER/model with this tower.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers, muon

from idefics_jax import IdeficsForVisionText2Text, IdeficsProcessor
from idefics_jax.data.records import open_sources
from idefics_jax.processing.images import load_image

SEED = 8
STEPS = 7000
BATCH = 128
RATE, ADAM_RATE = 6e-3, 1e-3  # of matrices, by Muon (Jordan 2024), and of all else
SMOOTHING = 0.1
SHIFT = 4  # pixels
GREY = 0.1  # share of pictures without colours
HOLE = 4  # a picture's side by that of the square which half of the pictures lack
MIXED = 0.3  # how evenly two pictures are mixed (Zhang et al. 2018), as a parameter of Beta
MIXING = (0.35, 0.85)  # when they are, as shares of all steps: at first it would only slow learning
MIRRORED = (0, 2, 1, 4, 3)  # where the things are in the mirror


def pictures(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures, `[pictures, height, width, 3]` uint8, the numbers of what is in them, `[pictures, 5]`, and its names.

    The numbers are those of a thing alone and of one at each of `scenes.PLACES`. The one after all names is for nothing
    there, and -1 is for what is not asked: places of a thing alone, and what is alone of several.
    """
    images, things = [], []
    for source in open_sources([f"{folder}/train/*.tar"]):
        for number in range(len(source)):
            record = source[number]
            for image, shown in zip(record.get("images", ()), record.get("things", ()), strict=True):
                images.append(np.asarray(load_image(image)))
                things.append(shown)
    names = sorted({name for shown in things for name in shown if name})
    numbers = {name: number for number, name in enumerate(names)} | {None: len(names)}
    labels = np.full((len(things), 5), -1, np.int32)
    for row, shown in zip(labels, things, strict=True):
        row[slice(0, 1) if len(shown) == 1 else slice(1, 5)] = [numbers[name] for name in shown]
    return np.stack(images), labels, names


def changed(pixels: jax.Array, things: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`[batch, height, width, 3]` uint8 as float32 from -1 to 1: moved, mirrored, in other colours, with holes.

    `things`, `[batch, 5]`, are those of the mirrored picture.
    """
    batch, height, width, _ = pixels.shape
    keys = jax.random.split(key, 6)
    x = pixels.astype(jnp.float32) / 127.5 - 1
    mirrored = jax.random.bernoulli(keys[0], shape=(batch, 1))
    things = jnp.where(mirrored, things[:, MIRRORED], things)
    x = jnp.where(mirrored[..., None, None], x[:, :, ::-1], x)
    grey = jax.random.bernoulli(keys[1], GREY, (batch, 1, 1, 1))
    x = jnp.where(grey, x.mean(-1, keepdims=True), x)
    x = x * jax.random.uniform(keys[2], (batch, 1, 1, 3), minval=0.7, maxval=1.3)
    x = x + 0.1 * jax.random.normal(keys[3], (batch, 1, 1, 3))
    hole = jax.random.uniform(keys[4], (batch, 2, 1), maxval=2 - 1 / HOLE)  # beyond 1: none
    rows, columns = ((jnp.arange(length) / length)[None] - hole[:, axis] for axis, length in enumerate((height, width)))
    inside = ((rows >= 0) & (rows < 1 / HOLE))[:, :, None] & ((columns >= 0) & (columns < 1 / HOLE))[:, None]
    x = jnp.where(inside[..., None], 0, x)
    padded = jnp.pad(x, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    corners = jax.random.randint(keys[5], (batch, 2), 0, 2 * SHIFT + 1)
    x = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (height, width, 3)))(padded, corners)
    return x, things


def matrices(params: Any) -> Any:
    """Which axes of each parameter are a matrix's inputs and outputs; None: it is no matrix."""

    def axes(path: Any, x: jax.Array) -> MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path)
        if "tower" not in name or "kernel" not in name:
            return None
        inputs = 3 if "patch" in name else 2 if ".o." in name else 1
        return MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, x.ndim)))

    return jax.tree_util.tree_map_with_path(axes, params)


def teach(model: IdeficsForVisionText2Text, images: np.ndarray, things: np.ndarray, steps: int) -> None:
    """Trains `model`'s vision tower in place."""
    tower = model.model.vision
    graph, weights = nnx.split(tower)
    classes = int(things.max()) + 1
    side = tower.config.image_size // tower.config.patch_size // 2  # of a quarter, in patches
    params = {"tower": weights, "head": jnp.zeros((tower.config.embed_dim, classes))}
    mesh = Mesh(np.array(jax.devices()), ("data",))
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    rates = [optax.warmup_cosine_decay_schedule(0, rate, 100, steps) for rate in (RATE, ADAM_RATE)]
    optimizer = muon(
        rates[0],
        adam_learning_rate=rates[1],
        beta=0.9,
        adam_b2=0.98,
        weight_decay=0.02,
        adam_weight_decay=0.02,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=matrices,
    )
    state = optimizer.init(params)

    def loss(params: Any, x: jax.Array, y: jax.Array, share: jax.Array) -> jax.Array:
        """Each picture is `share` of itself, the rest the one before."""
        mixed = share[:, None, None, None] * x + (1 - share[:, None, None, None]) * jnp.roll(x, 1, axis=0)
        tower = nnx.merge(graph, params["tower"])
        patches = tower.post_norm(tower(mixed)[:, 1:])
        quarters = patches.reshape(-1, 2, side, 2, side, patches.shape[-1]).mean((2, 4)).reshape(len(x), 4, -1)
        logits = jnp.concatenate([quarters.mean(1, keepdims=True), quarters], axis=1) @ params["head"]

        def of(y: jax.Array) -> jax.Array:
            targets = optax.smooth_labels(jax.nn.one_hot(y, classes), SMOOTHING)
            return jnp.where(y >= 0, optax.softmax_cross_entropy(logits, targets), 0).sum(1) / (y >= 0).sum(1)

        return (share * of(y) + (1 - share) * of(jnp.roll(y, 1, axis=0))).mean()

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array, number: jax.Array) -> Any:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(SEED), number))
        x, y = changed(x, y, keys[0])
        mixing = (number > MIXING[0] * steps) & (number < MIXING[1] * steps)
        share = jnp.where(mixing, jax.random.beta(keys[1], MIXED, MIXED, (len(x),)), 1)
        value, gradients = jax.value_and_grad(loss)(params, x, y, share)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    random, rows, seen, start = np.random.default_rng(SEED), NamedSharding(mesh, PartitionSpec("data")), [], time.time()
    order = np.empty(0, np.int64)
    for number in range(steps):
        if len(order) < BATCH:
            order = random.permutation(len(images))
        chosen, order = order[:BATCH], order[BATCH:]
        x, y = (jax.device_put(array[chosen], rows) for array in (images, things))
        params, state, value = step(params, state, x, y, jnp.int32(number))
        seen.append(value)
        if (number + 1) % 50 == 0:
            mean, speed = np.mean(jax.device_get(seen)), (number + 1) * BATCH / (time.time() - start)
            print(f"step {number + 1:,}/{steps:,}  loss {mean:.3f}  {speed:.0f} img/s", flush=True)
            seen.clear()
    nnx.update(tower, params["tower"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pocket.tower", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    folder = options.folder
    model = IdeficsForVisionText2Text.from_pretrained(folder / "model", dtype="float32")
    images, things, names = pictures(folder)
    print(f"{len(images):,} pictures of {len(names)} things", flush=True)
    teach(model, images, things, options.steps)
    model.save_pretrained(folder / "tower-model")
    IdeficsProcessor.from_pretrained(folder / "model").save_pretrained(folder / "tower-model")


if __name__ == "__main__":
    main()
