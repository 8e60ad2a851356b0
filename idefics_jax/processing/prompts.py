"""The forms a prompt can be given in, brought to one: a list of texts and images, then the text the tokenizer reads."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from idefics_jax.processing.images import ImageInput, image_source, is_image_source

IMAGE_TOKEN = "<image>"
FAKE_TOKEN = "<fake_token_around_image>"
END_OF_UTTERANCE = "<end_of_utterance>"
MAX_PARTS = 8_192  # texts and images of a prompt: an image alone takes two of at most some thousand tokens
IMAGE_MARK = re.compile(f"(?:{FAKE_TOKEN})?{IMAGE_TOKEN}(?:{FAKE_TOKEN})?")


class Text(str):
    """A prompt's text that is never taken for a URL or a file name, whatever it looks like: for text from users."""


Prompt = list[Text | ImageInput]  # after parsing, a string that is not a Text names an image


def parse_prompts(text: Any, images: Any) -> list[Prompt]:
    """The batch of prompts in `IdeficsProcessor.__call__`'s arguments of these names.

    Raises:
        ValueError: an empty batch or prompt, something that is neither text nor image, a wrong number of images.
    """
    if text is None:
        raise ValueError("There is no text: give a prompt, or images together with their text.")
    if isinstance(text, list | tuple) and not text:
        raise ValueError("The batch is empty; give at least one prompt.")
    if images is None:
        _check_counts("text", text, nested=False)
    _check_counts("images", images, nested=not isinstance(text, str) and len(text) > 1)
    prompts = _listed(text) if images is None else _paired(text, images)
    for number, prompt in enumerate(prompts):
        if all(isinstance(item, Text) and not item for item in prompt):
            raise ValueError(f"Prompt {number} is empty; give it a text or an image.")
    return prompts


def join(prompt: Prompt, bos: str, between_texts: str) -> tuple[str, list[ImageInput]]:
    """Return the tokenizer's text for `prompt`, and its images in order; `between_texts` joins two texts in a row.

    Two images in a row share the fake token between them.
    """
    joined, images, after = bos, [], None
    for item in prompt:
        if isinstance(item, Text):
            joined += (between_texts if after == "text" else "") + item
            after = "text"
        else:
            joined += ("" if after == "image" else FAKE_TOKEN) + IMAGE_TOKEN + FAKE_TOKEN
            images.append(item)
            after = "image"
    return joined, images


def _check_counts(name: str, given: Any, nested: bool) -> None:
    """Refuses what is too long to be a prompt, before anything of it is read; `nested`: items are prompts."""
    rows = given if isinstance(given, list | tuple) else ()
    nested = nested or any(isinstance(row, list | tuple) for row in rows)
    for row in rows if nested else [rows]:
        if isinstance(row, list | tuple) and len(row) > MAX_PARTS:
            raise ValueError(f"{name} holds {len(row):,} items in one prompt; at most {MAX_PARTS:,} are possible.")


def _listed(text: Any) -> list[Prompt]:
    """Prompts in which images stand among the strings."""
    if not isinstance(text, list | tuple):
        text = [text]
    nested = [isinstance(item, list | tuple) for item in text]
    if any(nested) and not all(nested):
        raise ValueError("The batch mixes lists with single items; make each prompt a list, or give one prompt.")
    prompts = [[_item(item) for item in prompt] for prompt in (text if any(nested) else [text])]
    for number, prompt in enumerate(prompts):
        images = sum(not isinstance(item, Text) for item in prompt)
        if marks := sum(item.count(IMAGE_TOKEN) for item in prompt if isinstance(item, Text)):
            raise ValueError(
                f"Prompt {number} has {marks + images} {IMAGE_TOKEN} marks and {images} images; put the images where "
                "the marks written in its strings are, or give a string and images=[...]."
            )
    return prompts


def _item(item: Any) -> Text | ImageInput:
    if isinstance(item, str):
        stripped = item.strip(" ")
        return stripped if not isinstance(item, Text) and is_image_source(stripped) else Text(stripped)
    return _image(item)


def _image(item: Any) -> ImageInput:
    if isinstance(item, str):
        return image_source(item)
    if isinstance(item, Image.Image | np.ndarray | Path):
        return item
    raise ValueError(
        f"A prompt holds a {type(item).__name__}; give strings, Pillow images, numpy arrays or pathlib.Paths."
    )


def _paired(text: Any, images: Any) -> list[Prompt]:
    """Prompts whose images are given apart from their text."""
    texts = [text] if isinstance(text, str) else list(text)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("With images=..., text must be a string or a list of strings.")
    entries = list(images) if isinstance(images, list | tuple) else [images]
    if len(texts) == 1 and len(entries) != 1:
        if entries and IMAGE_TOKEN not in texts[0]:
            raise ValueError(f"Prompt 0 has 0 {IMAGE_TOKEN} marks and {len(entries)} images; mark where each goes.")
        entries = [entries]
    if len(texts) != len(entries):
        raise ValueError(f"There are {len(texts)} texts and {len(entries)} entries in images; give one for each text.")
    return [_pair(number, *pair) for number, pair in enumerate(zip(texts, entries, strict=True))]


def _pair(number: int, text: str, entry: Any) -> Prompt:
    """Join a text and its image or images."""
    images = [_image(image) for image in (entry if isinstance(entry, list | tuple) else [entry])]
    pieces = [Text(piece.strip(" ")) for piece in IMAGE_MARK.split(text)]
    if len(pieces) == 1:  # as the reference places them
        return [*images, *pieces] if not isinstance(entry, list | tuple) else [*pieces, *images]
    if len(pieces) - 1 != len(images):
        raise ValueError(
            f"Prompt {number} has {len(pieces) - 1} {IMAGE_TOKEN} marks and {len(images)} images; give one for each."
        )
    prompt: Prompt = [pieces[0]]
    for image, piece in zip(images, pieces[1:], strict=True):
        prompt += [image, piece]
    return [item for item in prompt if not (isinstance(item, Text) and not item)]
