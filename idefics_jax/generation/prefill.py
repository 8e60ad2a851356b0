"""Prefill: images through the vision tower, their keys and values and the prompt's into a cache."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from idefics_jax.config import IdeficsConfig
from idefics_jax.generation.buckets import chunks
from idefics_jax.generation.hosts import place
from idefics_jax.generation.prompts import Prompts
from idefics_jax.nn.cache import Cache, grow, take_answers, take_rows, write
from idefics_jax.parallel.mesh import constrain, reshape, shards, spec


def image_states(model: Any, prompts: Prompts, rows: int, slots: int, interpolate: bool) -> Float[Array, "n p e"]:
    """Return the states of the images that are seen, row by row, `n = rows * slots`, and zeros elsewhere.

    An image that no token sees is padding and costs nothing.
    """
    images, images_are = prompts.images, prompts.images_are
    shape = image_shape(model.config, images, images_are)
    states = place(np.zeros((rows * slots, *shape), model.model.dtype))
    if images is None:
        return states
    seen, readers = prompts.seen_images, prompts.readers
    row, image = np.nonzero(seen[readers[prompts.reader]])
    first = readers[prompts.reader].start * slots
    most = max(int(seen[read].sum()) for read in readers)
    for start, size in chunks(most, shards("batch") // len(readers)):
        chosen = slice(start, start + size)
        pixels, target = images[row[chosen], image[chosen]], first + row[chosen] * slots + image[chosen]
        missing = size - len(target)
        pixels = np.pad(pixels, ((0, missing), *[(0, 0)] * (pixels.ndim - 1)))
        target = np.pad(target.astype(np.int32), (0, missing), constant_values=rows * slots)
        pixels, target = place(pixels, len(readers)), place(target, len(readers))
        states = _put(states, _read_images(model, pixels, images_are, interpolate), target)
    return states


def image_shape(config: IdeficsConfig, images: np.ndarray | None, images_are: str) -> tuple[int, int]:
    """Vectors per image as the decoder sees it, and their size."""
    vision = config.vision_config
    if config.use_resampler:
        return config.perceiver_config.resampler_n_latents, vision.embed_dim
    if images is not None and images_are != "pixel_values":
        return images.shape[2], images.shape[3]
    height, width = (vision.image_size, vision.image_size) if images is None else images.shape[2:4]
    return (height // vision.patch_size) * (width // vision.patch_size) + 1, vision.embed_dim


@partial(jax.jit, static_argnames=("images_are", "interpolate"))
def _read_images(
    model: Any, images: Shaped[Array, "m ..."], images_are: str, interpolate: bool
) -> Float[Array, "m p e"]:
    return model.model.encode_images(**{images_are: images[:, None]}, interpolate_pos_encoding=interpolate)[:, 0]


@jax.jit
def _put(states: Float[Array, "n p e"], read: Float[Array, "m p e"], target: Int[Array, "m"]) -> Float[Array, "n p e"]:
    """A program of its own: the vision tower is not compiled for every `n`. Targets beyond the end are dropped."""
    # On a mesh each device picks those of its own rows.
    places = jnp.full(len(states), -1).at[constrain(target)].set(jnp.arange(len(read)), mode="drop")
    places = constrain(places, "batch")
    new = constrain(read).at[places].get(mode="clip", out_sharding=spec("batch"))
    return jnp.where((places >= 0)[:, None, None], new.astype(states.dtype), states)


@partial(jax.jit, static_argnames="slots")
def prefill(
    model: Any,
    cache: Cache | None,
    states: Float[Array, "n p e"] | None,
    used_images: Int[Array, ""],
    new_images: Int[Array, ""],
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
        states: images to add, `n` a multiple of the batch; None, which only a cache allows, adds none.
        used_images: images that the cache holds in each row; the new ones come after them.
        new_images: how many each row of `states` begins with.
        tokens: padded on the left.
        embeds: vectors to take instead of the tokens', where `embedded`.
        slots: room for tokens in the cache that is returned.

    Returns:
        Scores of the next token, and the cache.
    """
    batch, _, images = image_mask.shape
    tokens = constrain(tokens, "batch")
    if cache is None:
        assert states is not None
        written = model.model.init_cache(batch, slots, images * states.shape[1])
    else:
        more = slots - cache.valid.shape[1]
        written = cache._replace(
            self_attention=grow(cache.self_attention, slots), valid=jnp.pad(cache.valid, ((0, 0), (0, more)))
        )
    if states is not None:
        states = reshape(states, (batch, len(states) // batch, *states.shape[1:]), "batch")
        written = _with_images(model, written, states, used_images, new_images, images)
    x = model.model.embed(tokens)
    if embeds is not None and embedded is not None:
        x = jnp.where(constrain(embedded, "batch")[..., None], constrain(embeds, "batch").astype(x.dtype), x)
    hidden, written = model.model.extend(x, valid, image_mask, written, fresh=cache is None)
    return constrain(model.logits(hidden[:, -1:])[:, 0], "batch"), written


def _with_images(
    model: Any,
    cache: Cache,
    states: Float[Array, "b m p e"],
    used_images: Int[Array, ""],
    new_images: Int[Array, ""],
    images: int,
) -> Cache:
    """The cache with the first `new_images` of `states` after the images in use, and room for `images` in all."""
    batch, _, patches, _ = states.shape
    buffers = cache.cross_attention
    prompts = jax.tree.leaves(buffers)[0].shape[-4]
    if prompts < batch:  # answers to one prompt part ways here
        buffers = take_rows(buffers, jnp.arange(batch) // (batch // prompts))

    def add(image: Int[Array, ""], buffers: Any) -> Any:
        state = jax.lax.dynamic_index_in_dim(states, image, axis=1, keepdims=False)
        return write(buffers, model.model.decoder.image_keys_values(state), (used_images + image) * patches)

    # One by one: unused room costs nothing.
    buffers = jax.lax.fori_loop(0, new_images, add, grow(buffers, images * patches))
    return cache._replace(cross_attention=buffers)


@partial(jax.jit, static_argnames="copies")
def expand(cache: Cache, copies: int) -> Cache:
    """Every prompt's row `copies` times, for several answers to it; the images' keys and values stay as they are."""
    return take_answers(cache, jnp.arange(cache.valid.shape[0] * copies) // copies)
