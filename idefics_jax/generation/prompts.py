"""A batch of prompts, checked, and moved into the shapes that programs are compiled for. All of it numpy."""

from typing import Any, NamedTuple

import numpy as np

from idefics_jax.config import IdeficsConfig


class Prompts(NamedTuple):
    """Inputs of `generate`: `b` prompts of `t` tokens and `i` images, padded on any side.

    Where several processes generate together, the prompts of all (see `hosts.py`).

    Attributes:
        tokens: int32 `[b, t]`; zeros where `embeds` are given.
        embeds: `[b, t, d]`, or None.
        valid: bool `[b, t]`, False at padding.
        image_mask: bool `[b, t, i]`, which images each token sees; False at padding.
        images: `[b, i, ...]` pixels, patch states or latents, of the rows whose images this process reads; None where
            no token sees an image.
        images_are: the argument that gave `images`: "pixel_values", "image_encoder_embeddings", "perceiver_embeddings".
        own: the rows that this process was given.
        readers: the rows whose images each process reads, in turn; one for all rows where all read the same.
        reader: which of them this process is.
    """

    tokens: np.ndarray
    embeds: np.ndarray | None
    valid: np.ndarray
    image_mask: np.ndarray
    images: np.ndarray | None
    images_are: str
    own: slice
    readers: tuple[slice, ...]
    reader: int

    @property
    def seen_images(self) -> np.ndarray:
        """bool `[b, i]`: the images that some token sees; the others are padding, and are never read."""
        return np.any(self.image_mask, axis=1)


def check_prompts(
    config: IdeficsConfig,
    pad: int,
    eos: list[int],
    input_ids: Any = None,
    attention_mask: Any = None,
    inputs_embeds: Any = None,
    image_attention_mask: Any = None,
    may_be_none: bool = False,
    **image_inputs: Any,
) -> Prompts:
    """Makes `Prompts` of what `generate` was given; without any only if there `may_be_none`.

    Without `attention_mask`, the padding token marks padding, as in the reference.

    Raises:
        ValueError: one sentence naming the input that is missing, superfluous, or does not fit the others.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
    if inputs_embeds is not None:
        embeds = np.asarray(inputs_embeds)
        _check_shape("inputs_embeds", embeds, ("batch", "seq", config.hidden_size))
        tokens = np.zeros(embeds.shape[:2], np.int32)
    else:
        embeds, tokens = None, np.asarray(input_ids)
        _check_shape("input_ids", tokens, ("batch", "seq"))
        _check_tokens(tokens, config.vocab_size + config.additional_vocab_size)
    if not len(tokens) and not may_be_none:
        raise ValueError("The batch holds no prompt; pass at least one.")
    if attention_mask is not None:
        valid = np.asarray(attention_mask) != 0
        _check_shape("attention_mask", valid, tokens.shape)
    elif embeds is None and pad not in eos:
        valid = tokens != pad
    else:
        valid = np.ones(tokens.shape, bool)
    if not valid.any(axis=1).all():
        raise ValueError(f"Prompt {int(np.argmin(valid.any(axis=1)))} is empty; give it at least one token.")
    tokens = tokens.astype(np.int32)
    rows = slice(0, len(tokens))
    images = _check_images(valid, image_attention_mask, image_inputs)
    return Prompts(tokens, embeds, valid, *images, own=rows, readers=(rows,), reader=0)


def _check_images(
    valid: np.ndarray, image_attention_mask: Any, image_inputs: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray | None, str]:
    given = [name for name, value in image_inputs.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"Pass only one of {' and '.join(given)}: each one stands for the images.")
    if image_attention_mask is None:
        if given:
            raise ValueError(f"{given[0]} needs image_attention_mask, which says which images each token sees.")
        return np.zeros((*valid.shape, 0), bool), None, "pixel_values"
    mask = np.asarray(image_attention_mask) != 0
    _check_shape("image_attention_mask", mask, (*valid.shape, "images"))
    mask &= valid[:, :, None]
    if not mask.any():
        return np.zeros((*valid.shape, 0), bool), None, "pixel_values"
    if not given:
        raise ValueError("image_attention_mask lets tokens see images, but none were given; pass pixel_values.")
    images = np.asarray(image_inputs[given[0]])
    last = ("height", "width", 3) if given[0] == "pixel_values" else ("patches or latents", "features")
    _check_shape(given[0], images, (len(valid), mask.shape[2], *last))
    last_seen = int(np.flatnonzero(mask.any(axis=(0, 1)))[-1])
    return mask[:, :, : last_seen + 1], images[:, : last_seen + 1], given[0]


def _check_shape(name: str, array: np.ndarray, wanted: tuple[int | str, ...]) -> None:
    """A wanted size is a number, or a word where any will do."""
    fits = array.ndim == len(wanted) and all(
        isinstance(size, str) or size == actual for size, actual in zip(wanted, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} is {list(array.shape)}; it must be [{', '.join(map(str, wanted))}].")


def _check_tokens(tokens: np.ndarray, vocabulary: int) -> None:
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"input_ids must be whole numbers, not {tokens.dtype}.")
    outside = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if outside.size:
        raise ValueError(
            f"input_ids hold {int(outside[0])}, but the model's tokens are 0 to {vocabulary - 1}; "
            "is it another model's tokenizer?"
        )


def aligned(array: np.ndarray, valid: np.ndarray, rows: int, length: int) -> np.ndarray:
    """`[b, t, ...] -> [rows, length, ...]`: each row's real tokens moved to its end, zeros elsewhere.

    So every row's last token is in the last column, whichever side its padding was on:

        tokens  5 6 . .  ->  . . . 5 6      (t = 4, length = 5)
                . 7 8 9  ->  . . 7 8 9
    """
    result = np.zeros((rows, length, *array.shape[2:]), array.dtype)
    for target, source, real in zip(result, array, valid, strict=False):
        target[length - int(real.sum()) :] = source[real]
    return result
