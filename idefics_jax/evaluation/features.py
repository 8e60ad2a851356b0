"""One vector per image for RICES, by the vision tower itself: its pooled state, of length 1, kept on disk."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from idefics_jax.evaluation.prompting import read_images
from idefics_jax.evaluation.store import write_json
from idefics_jax.generation.hosts import fetch, place
from idefics_jax.parallel.mesh import on_mesh_of, shards
from idefics_jax.processing.image_processor import IdeficsImageProcessor
from idefics_jax.utils.paths import naming

TOGETHER = 32  # images for each device's share of the batch


def image_features(
    model: Any,
    processor: IdeficsImageProcessor,
    paths: list[str],
    folder: Path | None,
    advance: Callable[[int], object] = lambda count: None,
) -> tuple[Float[np.ndarray, "n d"], dict[str, str]]:
    """A float32 vector of length 1 for each image, zeros for one that cannot be read; and what was wrong with those.

    Args:
        model: an `IdeficsForVisionText2Text`; the pixels are those that its processor gives.
        paths: of the images, each once.
        folder: where they are kept as they are made, for the same call to go on; None keeps none.
        advance: called with the number of images that are done.
    """
    size = model.config.vision_config.embed_dim
    kept = _kept(folder, paths, size) if folder is not None else np.full((len(paths), size), np.nan, np.float32)
    # A row of NaN is one that is still to be made.
    missing = np.flatnonzero(np.isnan(kept[:, 0]))
    advance(len(paths) - len(missing))
    errors: dict[str, str] = {}
    with on_mesh_of(model):
        batch = TOGETHER * shards("batch")
        for start in range(0, len(missing), batch):
            rows = missing[start : start + batch]
            images = read_images(processor, [paths[row] for row in rows])
            errors |= images.errors
            pixels = np.stack([images.arrays[paths[row]] for row in rows])
            pixels = np.pad(pixels, ((0, batch - len(rows)), *[(0, 0)] * 3))
            pooled = np.asarray(fetch(_pooled(model, place(pixels))), np.float32)[: len(rows)]
            readable = np.array([[paths[row] not in images.errors] for row in rows])
            kept[rows] = np.where(readable, pooled, 0)
            if isinstance(kept, np.memmap):
                kept.flush()
            advance(len(rows))
    for row in np.flatnonzero(~kept.any(axis=1)):
        errors.setdefault(paths[row], f"The image {paths[row]} could not be read.")
    return np.array(kept), errors


@jax.jit
def _pooled(model: Any, pixels: Float[Array, "b height width c"]) -> Float[Array, "b d"]:
    tower = model.model.vision
    pooled = tower.pooled(tower(pixels.astype(model.model.dtype))).astype(jnp.float32)
    return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)


def _kept(folder: Path, paths: list[str], size: int) -> np.ndarray:
    """The array on disk that rows are written into; a new one where there is none of these images."""
    names, array = folder / "features.json", folder / "features.npy"
    if names.is_file() and array.is_file() and json.loads(names.read_text(encoding="utf-8")) == paths:
        return np.load(array, mmap_mode="r+")
    made = io.BytesIO()
    np.save(made, np.full((len(paths), size), np.nan, np.float32))
    with naming(array):  # written as a whole: where a mapped page finds no room on the disk, the process is killed
        array.write_bytes(made.getbuffer())
    write_json(names, paths)
    return np.load(array, mmap_mode="r+")
