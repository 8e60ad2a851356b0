"""What the decoder sees of images, kept on the host: a support image is in many prompts, and is read once."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from idefics_jax.evaluation.prompting import Images, read_images
from idefics_jax.generation.buckets import chunks
from idefics_jax.generation.hosts import fetch, place
from idefics_jax.parallel.mesh import on_mesh_of, shards
from idefics_jax.processing.image_processor import IdeficsImageProcessor

ROOM = 2 * 2**30  # bytes; 13,000 images of the published checkpoints


class ImageFeatureCache:
    """The states of images by their path, as many of the last used ones as there is room for.

    For one process: several would have to read the same images at the same time.

    Attributes:
        images_are: the argument of `generate` that takes them.
    """

    def __init__(self, model: Any, processor: IdeficsImageProcessor, room: int = ROOM):
        self.images_are = "perceiver_embeddings" if model.config.use_resampler else "image_encoder_embeddings"
        self._model = model
        self._processor = processor
        self._room = room
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._used = 0

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Those whose pixels are needed."""
        return [path for path in dict.fromkeys(paths) if path not in self._kept]

    def read(self, paths: Iterable[str], pixels: Images) -> Images:
        """The states `[latents or patches, features]` of images; those that cannot be read are as a black one's.

        Args:
            pixels: of those that were `missing`; what has been dropped since is read again.
        """
        found = {path: self._kept[path] for path in paths if path in self._kept}
        wanted = [path for path in dict.fromkeys(paths) if path not in found]
        again = read_images(self._processor, [path for path in wanted if path not in pixels.arrays])
        arrays, errors = pixels.arrays | again.arrays, pixels.errors | again.errors
        for path, state in zip(wanted, self._encoded([arrays[path] for path in wanted]), strict=True):
            found[path] = state
            if path not in errors:
                self._kept[path] = state
                self._used += state.nbytes
        for path in found:
            if path in self._kept:
                self._kept.move_to_end(path)
        while self._used > self._room:
            self._used -= self._kept.popitem(last=False)[1].nbytes
        return Images(found, errors)

    def _encoded(self, pixels: list[np.ndarray]) -> list[np.ndarray]:
        with on_mesh_of(self._model):
            parts = []
            for start, size in chunks(len(pixels), shards("batch")):
                part = np.stack(pixels[start : start + size])
                part = np.pad(part, ((0, size - len(part)), *[(0, 0)] * 3))
                parts.append(_encode(self._model, place(part)))
            # Copies: a state that is kept alone must not keep its whole part.
            return [state.copy() for part in parts for state in fetch(part)][: len(pixels)]


@jax.jit
def _encode(model: Any, pixels: Float[Array, "m height width c"]) -> Float[Array, "m p e"]:
    return model.model.encode_images(pixel_values=pixels[:, None])[:, 0]
