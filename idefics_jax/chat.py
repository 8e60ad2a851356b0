"""Chat-style messages as the instruct checkpoints' prompt."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from idefics_jax.images import ImageInput, image_source
from idefics_jax.prompts import IMAGE_TOKEN, Prompt, Text

ROLES = {"user": "User", "assistant": "Assistant"}


def chat_prompt(messages: Sequence[Any], end_of_utterance: str, add_generation_prompt: bool) -> Prompt:
    """The prompt, texts and images in turn, of messages `{"role": "user" | "assistant", "content": ...}`.

    `content` is a string or a list of parts: `{"type": "text", "text": ...}`, `{"type": "image", ...}` with an `image`
    (Pillow image or array), `path`, `url` (http, https or `data:`), or OpenAI's `{"type": "image_url", "image_url":
    {"url": ...}}`. The prompt is that of the model card:

        User: What is in this image? IMAGE <end_of_utterance>
        Assistant: This picture depicts Idefix.<end_of_utterance>
        User: IMAGE And who is that?<end_of_utterance>
        Assistant:

    with a space after the colon where text follows, none before or after an image, and a newline between messages.
    `end_of_utterance` is "" for the base checkpoints, which do not know the token.

    Raises:
        ValueError: a message or part that is not of this form, by its number.
    """
    if not messages:
        raise ValueError("The conversation has no messages.")
    prompt: Prompt = []

    def add(text: str) -> None:
        last = prompt[-1] if prompt else None
        if isinstance(last, Text):
            prompt[-1] = Text(last + text)
        else:
            prompt.append(Text(text))

    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"Message {number} is a {type(message).__name__}; give a mapping with role and content.")
        role = message.get("role")
        if role not in ROLES:
            raise ValueError(f"Message {number} has the role {role!r}; IDEFICS knows {' and '.join(ROLES)}.")
        content = message.get("content")
        if not content:
            raise ValueError(f"Message {number} has no content.")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list | tuple):
            raise ValueError(
                f"Message {number} has a {type(content).__name__} as content; give text or a list of parts."
            )
        add(("\n" if number else "") + ROLES[role] + ":")
        for position, part in enumerate(parts):
            item = _part(part, f"Part {position} of message {number}")
            if not isinstance(item, Text):
                prompt.append(item)
            else:
                add((" " if position == 0 else "") + item)
        add(end_of_utterance)
    if add_generation_prompt:
        add(f"\n{ROLES['assistant']}:")
    return prompt


def _part(part: Any, name: str) -> Text | ImageInput:
    """One part of a message: its text, or its image's source."""
    match part:
        case {"type": "text", "text": str(text)}:
            return Text(text)
        case {"type": "image_url", "image_url": {"url": source} | source}:
            pass
        case {"type": "image"}:
            source = next((part[key] for key in ("image", "url", "path") if part.get(key) is not None), None)
        case _:
            source = None
    if isinstance(source, str):
        return image_source(source)
    if isinstance(source, Image.Image | np.ndarray | Path):
        return source
    raise ValueError(f"{name} is neither a text nor an image with an 'image', 'path' or 'url': {str(part)[:100]}.")


def message_parts(text: str, images: Sequence[ImageInput]) -> list[dict[str, Any]]:
    """A message's content for `chat_prompt`: images where they are marked in the text, otherwise before it.

    Raises:
        ValueError: not one image for each mark.
    """
    texts = text.split(IMAGE_TOKEN)
    if len(texts) == 1:
        texts = [""] * len(images) + texts
    if len(texts) - 1 != len(images):
        raise ValueError(f"The message has {len(texts) - 1} {IMAGE_TOKEN} marks, and {len(images)} images go with it.")
    parts: list[dict[str, Any]] = [{"type": "text", "text": texts[0]}]
    for image, text in zip(images, texts[1:], strict=True):
        parts += [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return [part for part in parts if part.get("text") != ""]
