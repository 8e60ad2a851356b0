"""Reading a prompt: images through the vision tower, their keys and values and the prompt's into a cache."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from idefics_jax.cache import Cache
from idefics_jax.config import IdeficsConfig
from idefics_jax.generation.buckets import chunks
from idefics_jax.generation.prompts import Prompts
from idefics_jax.sharding import constrain


def image_states(model: Any, prompts: Prompts, rows: int, slots: int, interpolate: bool) -> Float[Array, "n p e"]:
    """What the decoder sees of each image, `n = rows * slots`: the images that are seen, row by row, zeros elsewhere.

    An image that no token sees is padding and costs nothing.
    """
    images, images_are = prompts.images, prompts.images_are
    states = jnp.asarray(np.zeros((rows * slots, *_image_shape(model.config, images, images_are)), model.model.dtype))
    if images is None:
        return states
    row, image = np.nonzero(prompts.seen_images)
    for start, size in chunks(len(row)):
        chosen = slice(start, start + size)
        target = (row[chosen] * slots + image[chosen]).astype(np.int32)
        states = _read_images(model, states, images[row[chosen], image[chosen]], target, images_are, interpolate)
    return states


def _image_shape(config: IdeficsConfig, images: np.ndarray | None, images_are: str) -> tuple[int, int]:
    """Vectors per image as the decoder sees it, and their size."""
    vision = config.vision_config
    if config.use_resampler:
        return config.perceiver_config.resampler_n_latents, vision.embed_dim
    if images is not None and images_are != "pixel_values":
        return images.shape[2], images.shape[3]
    height, width = (vision.image_size, vision.image_size) if images is None else images.shape[2:4]
    return (height // vision.patch_size) * (width // vision.patch_size) + 1, vision.embed_dim


@partial(jax.jit, static_argnames=("images_are", "interpolate"), donate_argnames="states")
def _read_images(
    model: Any,
    states: Float[Array, "n p e"],
    images: Float[Array, "m ..."],
    target: Int[Array, "m"],
    images_are: str,
    interpolate: bool,
) -> Float[Array, "n p e"]:
    read = model.model.encode_images(**{images_are: images[:, None]}, interpolate_pos_encoding=interpolate)
    return states.at[target].set(constrain(read[:, 0]).astype(states.dtype))


@partial(jax.jit, static_argnames="slots")
def prefill(
    model: Any,
    cache: Cache | None,
    states: Float[Array, "n p e"] | None,
    used_images: Int[Array, ""],
    tokens: Int[Array, "b t"],
    embeds: Float[Array, "b t d"] | None,
    embedded: Bool[Array, "b t"] | None,
    valid: Bool[Array, "b t"],
    image_mask: Bool[Array, "b t i"],
    *,
    slots: int,
) -> tuple[Float[Array, "b v"], Cache]:
    """Reads a prompt, or a conversation's next turn.

    Args:
        cache: what was read before, not consumed; None at the start.
        states: images to add, `n` a multiple of the batch; None adds none.
        used_images: images that the cache holds in each row; the new ones come after them.
        tokens: padded on the left.
        embeds: vectors to take instead of the tokens', where `embedded`.
        slots: room for tokens in the cache that is returned.

    Returns:
        Scores of the next token, and the cache.
    """
    batch, _, images = image_mask.shape
    tokens, valid, image_mask = constrain(tokens, "batch"), constrain(valid, "batch"), constrain(image_mask, "batch")
    if states is not None:
        states = constrain(states.reshape(batch, -1, *states.shape[1:]), "batch")
    if cache is None:
        cache = model.model.init_cache(states, slots)
    else:
        cache = _with_images(model, _grown(cache, slots), states, used_images, batch, images)
    x = model.model.embed(tokens)
    if embeds is not None and embedded is not None:
        x = jnp.where(constrain(embedded, "batch")[..., None], constrain(embeds, "batch").astype(x.dtype), x)
    hidden, cache = model.model.extend(x, valid, image_mask, cache)
    return model.logits(hidden[:, -1:])[:, 0], cache


def _grown(cache: Cache, slots: int) -> Cache:
    """The cache with room for `slots` tokens."""
    more = slots - cache.valid.shape[1]
    return cache._replace(
        self_attention=jax.tree.map(lambda x: _padded(x, more), cache.self_attention),
        valid=jnp.pad(cache.valid, ((0, 0), (0, more))),
    )


def _padded(x: Array, more: int) -> Array:
    """`[..., b, n, s, h]` with zeros after its slots."""
    return jnp.pad(x, [(0, more) if axis == x.ndim - 2 else (0, 0) for axis in range(x.ndim)])


def _with_images(
    model: Any, cache: Cache, states: Array | None, used_images: Int[Array, ""], batch: int, images: int
) -> Cache:
    """The cache with more images after those in use, and room for `images` in all."""
    if states is None:
        return cache
    states = states.astype(model.model.dtype)
    patches = states.shape[2]
    new = model.model.decoder.image_keys_values(states.reshape(batch, -1, states.shape[-1]))

    def add(old: Array, new: Array) -> Array:
        old = jnp.repeat(old, batch // old.shape[-4], axis=old.ndim - 4)  # sequences of one prompt part ways here
        old = _padded(old, images * patches - old.shape[-2])
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), used_images * patches, old.ndim - 2)

    return cache._replace(cross_attention=jax.tree.map(add, cache.cross_attention, new))


@partial(jax.jit, static_argnames="copies")
def expand(cache: Cache, copies: int) -> Cache:
    """Every prompt's row `copies` times, for several answers to it; the images' keys and values stay as they are."""
    return cache._replace(
        self_attention=jax.tree.map(lambda x: jnp.repeat(x, copies, axis=x.ndim - 4), cache.self_attention),
        valid=jnp.repeat(cache.valid, copies, axis=0),
    )
