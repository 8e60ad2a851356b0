"""Chat-style messages, in the forms of several tools, as the instruct checkpoints' prompt."""

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from idefics_jax.processing.images import ImageInput, image_source
from idefics_jax.processing.prompts import FAKE_TOKEN, IMAGE_MARK, IMAGE_TOKEN, Prompt, Text

MAX_MESSAGES = 8_192  # of a conversation: each takes several of at most some thousand tokens
ROLES = {"user": "User", "assistant": "Assistant"}
MESSAGE_FIELDS = {"role", "content", "images", "image", "id", "name"}  # the last two say nothing to the model
TEXT_TYPES = {None, "text", "input_text", "output_text"}
IMAGE_TYPES = {None, "image", "image_url", "input_image"}
IMAGE_FIELDS = ("image", "url", "path", "image_url", "base64", "source")


def chat_prompt(messages: Sequence[Any], end_of_utterance: str, add_generation_prompt: bool) -> Prompt:
    """Texts and images in turn, of messages `{"role": "user" | "assistant", "content": ...}`.

    `content` is a string or a list of parts: `{"type": "text", "text": ...}`, `{"type": "image", ...}` with an `image`
    (Pillow image or array), `path`, `url` (http, https or `data:`) or `base64`, or OpenAI's `{"type": "image_url",
    "image_url": {"url": ...}}`. A message may have its images beside the content, as Ollama's do: `"images": [...]`;
    they go where its text has `<image>`, or else before it. The prompt is that of the model card:

        User: What is in this image? IMAGE <end_of_utterance>
        Assistant: This picture depicts Idefix.<end_of_utterance>
        User: IMAGE And who is that?<end_of_utterance>
        Assistant:

    with a space after the colon where text follows, none before or after an image, and a newline between messages.
    `end_of_utterance` is "" for the base checkpoints, which do not know the token.

    Raises:
        ValueError: a message or part that is not of this form or has a field that is not read, by its number.
    """
    if not messages:
        raise ValueError("The conversation has no messages.")
    if len(messages) > MAX_MESSAGES:
        raise ValueError(f"The conversation has {len(messages):,} messages; at most {MAX_MESSAGES:,} are possible.")
    prompt: Prompt = []

    def add(text: str) -> None:
        last = prompt[-1] if prompt else None
        if isinstance(last, Text):
            prompt[-1] = Text(last + text)
        else:
            prompt.append(Text(text))

    for number, message in enumerate(messages):
        role, parts = read_message(message, f"Message {number}")
        if not parts:
            raise ValueError(f"Message {number} has no content.")
        add(("\n" if number else "") + ROLES[role] + ":")
        for position, part in enumerate(parts):
            if isinstance(part, Text):
                add((" " if position == 0 else "") + part)
            elif part is None:
                raise ValueError(
                    f"Part {position} of message {number} is neither a text nor an image with an 'image', 'path' or "
                    "'url'."
                )
            else:
                prompt.append(image_source(part) if isinstance(part, str) else part)
        add(end_of_utterance)
    if add_generation_prompt:
        add(f"\n{ROLES['assistant']}:")
    return prompt


def read_message(message: Any, name: str) -> tuple[str, list[Any]]:
    """Role and parts of a message: `Text`s, images as they are named, and None for `{"type": "image"}` without one.

    Raises:
        ValueError: another form, an unknown role, or a field that is not read.
    """
    if not isinstance(message, Mapping):
        raise ValueError(f"{name} is a {type(message).__name__}; give a mapping with role and content.")
    _check_fields(message, MESSAGE_FIELDS, name)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{name} has the role {reprlib.repr(role)}; IDEFICS knows {' and '.join(ROLES)}.")
    if isinstance(content, str):
        parts = [_text(content, name)] if content else []
    elif isinstance(content, list | tuple):
        parts = [_part(part, f"Part {number} of {name[0].lower()}{name[1:]}") for number, part in enumerate(content)]
    elif content is None:
        parts = []
    else:
        raise ValueError(f"{name} has a {type(content).__name__} as content; give text or a list of parts.")
    images = _beside(message, name)
    return role, place_images([parts], images, name)[0] if images else parts


def place_images(messages: Sequence[list[Any]], images: Sequence[Any], name: str) -> list[list[Any]]:
    """Parts of messages with `images` where an image belongs: at None, and at `<image>` in a text.

    Without such a place they go in front of the first message, unless its messages have the same images already.

    Raises:
        ValueError: not one image for each place, or other images in the messages.
    """
    marked = [[item for part in parts for item in _split_marks(part, name)] for parts in messages]
    places = sum(part is None for parts in marked for part in parts)
    if not places and images and marked:
        own = [part for parts in marked for part in parts if not isinstance(part, Text)]
        if not own:
            return [[*images, *marked[0]], *marked[1:]]
        if len(own) == len(images) and all(_same(*pair) for pair in zip(own, images, strict=True)):
            return marked
        raise ValueError(f"{name} has images in its content and others beside it; name each image once.")
    if places != len(images):
        raise ValueError(
            f"{name} has {places} {IMAGE_TOKEN} marks and {len(images)} images for them; give one for each."
        )
    rest = iter(images)
    return [[next(rest) if part is None else part for part in parts] for parts in marked]


def _split_marks(part: Any, name: str) -> list[Any]:
    """A text as texts with None for each `<image>`; any other part as it is."""
    if not isinstance(part, Text) or (IMAGE_TOKEN not in part and FAKE_TOKEN not in part):
        return [part]
    pieces = [piece.strip() for piece in IMAGE_MARK.split(part)]
    if any(FAKE_TOKEN in piece for piece in pieces):
        raise ValueError(f"{name} holds a literal {FAKE_TOKEN}; take it out.")
    parts = [Text(pieces[0]), *(item for piece in pieces[1:] for item in (None, Text(piece)))]
    return [item for item in parts if item is None or item]


def _same(image: Any, other: Any) -> bool:
    return image is other or (isinstance(image, str | Path) and str(image) == str(other))


def _beside(message: Mapping[str, Any], name: str) -> list[Any]:
    """The images beside a message's content."""
    found = []
    for field in ("images", "image"):
        value = message.get(field)
        values = value if isinstance(value, list | tuple) else [] if _is_empty(value) else [value]
        if values:
            found.append([_image(value, f'The "{field}" of {name[0].lower()}{name[1:]}') for value in values])
    if len(found) == 2 and not (len(found[0]) == len(found[1]) == 1 and _same(found[0][0], found[1][0])):
        raise ValueError(f'{name} has "images" and another "image"; keep one of them.')
    return found[0] if found else []


def _part(part: Any, name: str) -> Any:
    """A part of a message: its text, its image, or None for an image that is named elsewhere."""
    fields = part if isinstance(part, Mapping) else {}
    kind = fields.get("type")
    if not isinstance(kind, str | None):
        kind = "unknown"
    named = [field for field in IMAGE_FIELDS if not _is_empty(fields.get(field))]
    if kind in TEXT_TYPES and isinstance(fields.get("text"), str) and (kind or not named):
        _check_fields(fields, {"type", "text"}, name)
        return _text(fields["text"], name)
    if kind == "image" or (kind in IMAGE_TYPES and named):
        _check_fields(fields, {"type", "detail", *IMAGE_FIELDS}, name)
        images = [_image(_unwrapped(fields[field], field, name), name) for field in named]
        if any(not _same(images[0], image) for image in images[1:]):
            raise ValueError(f"{name} names different images; keep one of them.")
        return images[0] if images else None
    raise ValueError(f"{name} is neither a text nor an image with an 'image', 'path' or 'url': {reprlib.repr(part)}.")


def _unwrapped(source: Any, field: str, name: str) -> Any:
    """The image in OpenAI's `{"url": ...}` or Anthropic's `{"type": "base64", "media_type": ..., "data": ...}`."""
    if field == "base64" and isinstance(source, str) and not source.startswith("data:"):
        return f"data:image/unknown;base64,{source}"
    if not isinstance(source, Mapping):
        return source
    if isinstance(source.get("data"), str):
        _check_fields(source, {"type", "media_type", "data"}, name)
        return f"data:{source.get('media_type') or 'image/unknown'};base64,{source['data']}"
    _check_fields(source, {"type", "url", "detail"}, name)
    return source.get("url")


def _image(source: Any, name: str) -> Any:
    if isinstance(source, Image.Image | np.ndarray | Path) or (isinstance(source, str) and source.strip()):
        return source
    raise ValueError(
        f"{name} is neither a text nor an image with an 'image', 'path' or 'url': {reprlib.repr(source)} is none."
    )


def _text(text: str, name: str) -> Text:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds half of a surrogate pair; write the whole character.") from error
    return Text(text)


def _check_fields(fields: Mapping[str, Any], known: set[str], name: str) -> None:
    """Refuse fields that say something and are not read; those that are null or empty say nothing."""
    unknown = [str(field) for field, value in fields.items() if field not in known and not _is_empty(value)]
    if unknown:
        raise ValueError(f"{name} has the field {reprlib.repr(unknown[0])}, which is not read; take it out.")


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


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
