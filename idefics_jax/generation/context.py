"""Cache of a conversation, so that its next message reads only what is new."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from idefics_jax.config import IdeficsConfig
from idefics_jax.generation.buckets import IMAGES, SLOTS, TOKENS, bucket
from idefics_jax.generation.prompts import Prompts, aligned
from idefics_jax.generation.shapes import Sizes
from idefics_jax.nn.cache import Cache
from idefics_jax.parallel.memory import Request
from idefics_jax.parallel.mesh import shards


class ConversationCache(NamedTuple):
    """A conversation as the model has it: pass it as `cache` to `generate` with the next turn. It can be used again.

    Attributes:
        cache: on the device; its rows beyond the conversations' fill up a bucket.
        length: slots written.
        images: slots for images in use, in every row.
        conversations: each row's tokens so far, int32 `[tokens]`; with `inputs_embeds`, without those.
        token_counts: how many tokens each row has, however they were given.
        pending: `[b]`, each row's last token where the cache does not have it yet, otherwise -1.
        image_mask: bool `[b, i]`, which images each row's last token saw.
        own: the rows that this process was given; the others are other processes'.
    """

    cache: Cache
    length: int
    images: int
    conversations: tuple[np.ndarray, ...]
    token_counts: np.ndarray
    pending: np.ndarray
    image_mask: np.ndarray
    own: slice

    @property
    def patches(self) -> int:
        """Vectors that the cache has of each image."""
        return jax.tree.leaves(self.cache.cross_attention)[0].shape[-1] // self.image_mask.shape[1]


class PrefillInputs(NamedTuple):
    """The arrays that a call reads, in their buckets: `rows` of `t` tokens padded on the left.

    Attributes:
        tokens, embeds, embedded, valid, image_mask: as `prefill` takes them.
        slots: room for tokens in the cache.
        room: for new tokens in the answer.
        used_images: image slots in use before.
        new_image_slots: how many images each row of new ones has, unused ones of the bucket included.
        images: image slots in use afterwards.
        length: slots written afterwards.
        conversations, token_counts: as in `ConversationCache`, the prompt's included.
        own: the rows that this process was given.
    """

    tokens: np.ndarray
    embeds: np.ndarray | None
    embedded: np.ndarray | None
    valid: np.ndarray
    image_mask: np.ndarray
    slots: int
    room: int
    used_images: int
    new_image_slots: int
    images: int
    length: int
    conversations: tuple[np.ndarray, ...]
    token_counts: np.ndarray
    own: slice


def least_request(
    config: IdeficsConfig, *, prompts: int = 1, copies: int = 1, tokens: int = 1, images: int = 0, new_tokens: int = 1
) -> Request:
    """Sizes that a call of `generate` has at least, before its model is loaded.

    Args:
        copies: answers to each prompt, or beams.
        tokens, images: of a prompt.
        new_tokens: the most tokens of an answer.
    """
    columns = bucket(tokens, TOKENS)
    slots = bucket(columns + new_tokens, SLOTS)
    return Request(prompts, prompts * copies, columns, slots, bucket(images, IMAGES) * patches_per_image(config))


def patches_per_image(config: IdeficsConfig) -> int:
    """Vectors that the decoder sees of an image of the model's own size."""
    vision = config.vision_config
    if config.use_resampler:
        return config.perceiver_config.resampler_n_latents
    return (vision.image_size // vision.patch_size) ** 2 + 1


def plan_reading(
    prompts: Prompts,
    context: ConversationCache | None,
    new_tokens: int,
    fit: Callable[[Sizes], Sizes] = lambda sizes: sizes,
) -> PrefillInputs:
    """Puts prompts into buckets, after what `context` has, with room for `new_tokens` more.

    `fit` may enlarge the buckets of a call that begins without a context.
    """
    count, new_images = len(prompts.tokens), prompts.image_mask.shape[2]
    if context is None:
        tokens, embeds, valid, mask = prompts.tokens, prompts.embeds, prompts.valid, prompts.image_mask
        embedded = None if embeds is None else valid
        rows, used, length = bucket(count, shards("batch")), 0, 0
        image_slots = bucket(new_images, IMAGES)
        before, counts_before = (np.zeros(0, np.int32),) * count, np.zeros(count, int)
    else:
        # What was chosen last was never read: it comes first.
        pending = context.pending[:, None]
        tokens = np.concatenate([np.maximum(pending, 0), prompts.tokens], axis=1)
        valid = np.concatenate([pending >= 0, prompts.valid], axis=1)
        mask = _mask_after(context, prompts)
        embeds = None if prompts.embeds is None else np.pad(prompts.embeds, ((0, 0), (1, 0), (0, 0)))
        embedded = None if embeds is None else valid & (np.arange(valid.shape[1]) > 0)
        rows, used, length = context.cache.valid.shape[0], context.images, context.length
        image_slots = max(context.image_mask.shape[1], bucket(used + new_images, IMAGES))
        before, counts_before = context.conversations, context.token_counts
    columns = bucket(int(valid.sum(axis=1).max()), TOKENS)
    slots, room = bucket(length + columns + new_tokens, SLOTS), bucket(new_tokens, SLOTS)
    new_image_slots = bucket(new_images, IMAGES)
    if context is None:
        rows, columns, image_slots, slots, room = fit(Sizes(rows, columns, image_slots, slots, room))
        new_image_slots = image_slots
    else:
        slots = max(slots, context.cache.valid.shape[1])
    mask = np.pad(mask, ((0, 0), (0, 0), (0, image_slots - mask.shape[2])))
    said = [
        () if prompts.embeds is not None else row[real] for row, real in zip(prompts.tokens, prompts.valid, strict=True)
    ]
    return PrefillInputs(
        tokens=aligned(tokens, valid, rows, columns),
        embeds=None if embeds is None else aligned(embeds, valid, rows, columns),
        embedded=None if embedded is None else aligned(embedded, valid, rows, columns),
        valid=aligned(valid, valid, rows, columns),
        image_mask=aligned(mask, valid, rows, columns),
        slots=slots,
        room=room,
        used_images=used,
        new_image_slots=new_image_slots,
        images=used + new_images,
        length=length + columns,
        conversations=tuple(np.concatenate([old, new]).astype(np.int32) for old, new in zip(before, said, strict=True)),
        token_counts=counts_before + prompts.valid.sum(axis=1),
        own=prompts.own,
    )


def _mask_after(context: ConversationCache, prompts: Prompts) -> np.ndarray:
    """`[b, 1 + t, i]`: which of the old images and the new ones each token sees, the pending one first.

    A token before the turn's first image goes on seeing what the conversation's last token saw.
    """
    begun = np.logical_or.accumulate(prompts.image_mask.any(axis=2), axis=1)
    begun = np.pad(begun, ((0, 0), (1, 0)))
    old = context.image_mask[:, None, : context.images] & ~begun[:, :, None]
    return np.concatenate([old, np.pad(prompts.image_mask, ((0, 0), (1, 0), (0, 0)))], axis=2)
