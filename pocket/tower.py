"""Teaches the pocket model's vision tower to tell things apart, before the whole model is trained.

    python -m pocket.tower FOLDER [--steps N]

As IDEFICS begins with CLIP's tower, this one does not begin with nothing: it classifies the pictures of one thing in
FOLDER/train, by the mean of its patches. FOLDER/tower-model is FOLDER/model with this tower.
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
from idefics_jax.images import load_image
from train.data.records import open_sources

SEED = 8
STEPS = 5000
BATCH = 128
RATE, ADAM_RATE = 6e-3, 1e-3  # of matrices, by Muon (Jordan 2024), and of all else
SMOOTHING = 0.1
SHIFT = 4  # pixels
GREY = 0.1  # share of pictures without colours


def pictures(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures of one thing, `[pictures, height, width, 3]` uint8, the number of each one's thing, and their names."""
    images, things = [], []
    for source in open_sources([f"{folder}/train/*.tar"]):
        for number in range(len(source)):
            record = source[number]
            if len(record.get("things", ())) == 1:
                images.append(np.asarray(load_image(record["images"][0])))
                things += record["things"]
    names = sorted(set(things))
    numbers = {name: number for number, name in enumerate(names)}
    return np.stack(images), np.array([numbers[name] for name in things]), names


def changed(pixels: jax.Array, key: jax.Array) -> jax.Array:
    """`[batch, height, width, 3]` uint8 as float32 from -1 to 1: moved, mirrored, in other colours."""
    batch, height, width, _ = pixels.shape
    keys = jax.random.split(key, 5)
    x = pixels.astype(jnp.float32) / 127.5 - 1
    x = jnp.where(jax.random.bernoulli(keys[0], shape=(batch, 1, 1, 1)), x[:, :, ::-1], x)
    grey = jax.random.bernoulli(keys[1], GREY, (batch, 1, 1, 1))
    x = jnp.where(grey, x.mean(-1, keepdims=True), x)
    x = x * jax.random.uniform(keys[2], (batch, 1, 1, 3), minval=0.7, maxval=1.3)
    x = x + 0.1 * jax.random.normal(keys[3], (batch, 1, 1, 3))
    padded = jnp.pad(x, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    corners = jax.random.randint(keys[4], (batch, 2), 0, 2 * SHIFT + 1)
    return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (height, width, 3)))(
        padded, corners
    )


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

    def loss(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        tower = nnx.merge(graph, params["tower"])
        logits = tower.post_norm(tower(x)).mean(1) @ params["head"]
        targets = optax.smooth_labels(jax.nn.one_hot(y, classes), SMOOTHING)
        return optax.softmax_cross_entropy(logits, targets).mean(), (logits.argmax(-1) == y).mean()

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array, number: jax.Array) -> Any:
        x = changed(x, jax.random.fold_in(jax.random.key(SEED), number))
        (value, right), gradients = jax.value_and_grad(loss, has_aux=True)(params, x, y)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value, right

    random, rows, seen, start = np.random.default_rng(SEED), NamedSharding(mesh, PartitionSpec("data")), [], time.time()
    order = np.empty(0, np.int64)
    for number in range(steps):
        if len(order) < BATCH:
            order = random.permutation(len(images))
        chosen, order = order[:BATCH], order[BATCH:]
        x, y = (jax.device_put(array[chosen], rows) for array in (images, things))
        params, state, value, right = step(params, state, x, y, jnp.int32(number))
        seen.append((float(value), float(right)))
        if (number + 1) % 50 == 0:
            value, right = np.mean(seen[-50:], axis=0)
            speed = (number + 1) * BATCH / (time.time() - start)
            print(f"step {number + 1:,}/{steps:,}  loss {value:.3f}  right {right:.1%}  {speed:.0f} img/s", flush=True)
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
