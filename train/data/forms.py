"""The forms that a record can have: a conversation, or text with marks where its images go."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from idefics_jax.images import image_source
from idefics_jax.paths import AnyPath
from idefics_jax.prompts import FAKE_TOKEN, IMAGE_MARK, IMAGE_TOKEN, Prompt, Text

from ..data.images import ImageSource

FORMS = 'a record has "messages", "content", "text", "question" and "answer", or fields for --data.template'


class Document(NamedTuple):
    """Text with an `<image>` for each of the `images`; what is asked for comes after what is given."""

    given: str
    asked: str
    images: list[ImageSource]


def document_of(record: Mapping[str, Any], folder: AnyPath, template: str | None) -> Document:
    """The text and images of a record that is no conversation; what is asked for is the text after the last image.

    With a template, it is what comes from `{answer}` on, or from its first field on if it has no such field.

    Raises:
        ValueError: no such record, not one image for each mark, or image tokens in a text.
    """
    if "content" in record:
        return _interleaved_document(record["content"], folder)
    images = _images(record, folder)
    if template is None:
        if "text" not in record:
            raise ValueError(f"it has the fields {', '.join(record) or 'none'}; {FORMS}")
        given, asked = "", _text(record, "text").strip()
    else:
        given, asked = (_filled(part, record) for part in _split_template(template))
    if IMAGE_TOKEN not in given + asked:
        given = IMAGE_TOKEN * len(images) + given
    if template is None:
        given, asked = _split_after_images(given + asked)
    return Document(given, asked, images)


def prompt_of(text: str, images: Sequence[ImageSource]) -> Prompt:
    """The texts and images that a text with marks stands for.

    Raises:
        ValueError: not one image for each mark, or image tokens elsewhere.
    """
    pieces = [piece.strip(" ") for piece in IMAGE_MARK.split(text)]
    if len(pieces) - 1 != len(images):
        raise ValueError(f"it has {len(pieces) - 1} {IMAGE_TOKEN} marks and {len(images)} images")
    if any(FAKE_TOKEN in piece for piece in pieces):
        raise ValueError(f"its text holds a literal {FAKE_TOKEN}; take it out")
    prompt: Prompt = [Text(pieces[0])]
    for image, piece in zip(images, pieces[1:], strict=True):
        prompt += [image, Text(piece)]
    return [item for item in prompt if not (isinstance(item, Text) and not item)]


def messages_of(record: Mapping[str, Any], folder: AnyPath, template: str | None) -> list[dict[str, Any]] | None:
    """The conversation in a record as `chat_prompt` takes it, with the images found; None: it is none.

    Images stand in the messages, or in the record's "images" in the order of the parts `{"type": "image"}` and of the
    `<image>` marks in the messages; without any, all go in front of the first message's text.

    Raises:
        ValueError: not one image for each place, or image tokens in a text.
    """
    if "messages" in record:
        messages = record["messages"]
        if not isinstance(messages, list) or not all(
            isinstance(message, Mapping) and isinstance(message.get("role"), str) for message in messages
        ):
            raise ValueError('its "messages" are not a list of objects with role and content')
    elif template is None and "question" in record and "answer" in record:
        messages = [
            {"role": "user", "content": _text(record, "question")},
            {"role": "assistant", "content": _text(record, "answer")},
        ]
    else:
        return None
    images = _images(record, folder)
    parts = [_listed(message.get("content")) for message in messages]
    if messages and not any(_takes_image(part) for content in parts for part in content):
        parts[0] = [{"type": "image"} for _ in images] + parts[0]
    rest = iter(images)
    found = [
        {"role": message.get("role"), "content": [item for part in content for item in _parts(part, rest, folder)]}
        for message, content in zip(messages, parts, strict=True)
    ]
    if left := len(list(rest)):
        raise ValueError(f"{left} of its {len(images)} images have no {IMAGE_TOKEN} mark in its messages")
    return found


def _listed(content: Any) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise ValueError(f"a message has a {type(content).__name__} as content, not text or a list of parts")
    return content


def _takes_image(part: Any) -> bool:
    """Whether a message's part is an image from the record's "images"."""
    if not isinstance(part, Mapping):
        return False
    return IMAGE_TOKEN in str(part.get("text")) or (part.get("type") == "image" and _source(part) is None)


def _source(part: Mapping[str, Any]) -> Any:
    return next((part[key] for key in ("image", "path", "url", "image_url") if part.get(key) is not None), None)


def _parts(part: Any, images: Iterator[ImageSource], folder: AnyPath) -> list[dict[str, Any]]:
    """A message's part as parts of text and of images that can be read; marks become the next of `images`."""
    if not isinstance(part, Mapping):
        raise ValueError(f"a message's part is a {type(part).__name__}, not an object with a type")
    if part.get("type") in ("image", "image_url"):
        source = _source(part)
        if isinstance(source, Mapping):  # OpenAI's {"image_url": {"url": ...}}
            source = source.get("url")
        return [{"type": "image", "image": _image(source, folder) if source is not None else _next(images)}]
    text = part.get("text")
    if part.get("type") != "text" or not isinstance(text, str):
        raise ValueError(f"a message's part is neither text nor image: {str(part)[:100]}")
    if IMAGE_TOKEN not in text and FAKE_TOKEN not in text:
        return [{"type": "text", "text": text}]
    prompt = prompt_of(text, [_next(images) for _ in range(text.count(IMAGE_TOKEN))])
    return [
        {"type": "text", "text": item.strip()} if isinstance(item, Text) else {"type": "image", "image": item}
        for item in prompt
    ]


def _next(images: Iterator[ImageSource]) -> ImageSource:
    image = next(images, None)
    if image is None:
        raise ValueError(f"its messages have more {IMAGE_TOKEN} marks than it has images")
    return image


def _images(record: Mapping[str, Any], folder: AnyPath) -> list[ImageSource]:
    for name in ("images", "file_names", "image", "file_name"):
        if record.get(name) is not None:
            values = record[name] if isinstance(record[name], list) else [record[name]]
            return [_image(value, folder) for value in values]
    return []


def _image(value: Any, folder: AnyPath) -> ImageSource:
    if not isinstance(value, str) or not value:
        raise ValueError(f"one of its images is a {type(value).__name__}, not a path or URL")
    source = image_source(value)
    if isinstance(source, str):
        return source
    return folder / source if isinstance(folder, Path) else str(folder / source)


def _interleaved_document(content: Any, folder: AnyPath) -> Document:
    """A list of strings and `{"image": path}`; a space goes between strings in a row."""
    if not isinstance(content, list):
        raise ValueError(f'its "content" is a {type(content).__name__}, not a list of strings and images')
    text, images, after_text = "", [], False
    for item in content:
        if isinstance(item, str):
            if IMAGE_TOKEN in item or FAKE_TOKEN in item:
                raise ValueError("its text holds a literal image token; take it out")
            text += (" " if after_text else "") + item
        elif isinstance(item, Mapping) and "image" in item:
            text += IMAGE_TOKEN
            images.append(_image(item["image"], folder))
        else:
            raise ValueError(f'its "content" holds neither a string nor {{"image": path}}: {str(item)[:100]}')
        after_text = isinstance(item, str)
    return Document(*_split_after_images(text.strip()), images)


def _split_after_images(text: str) -> tuple[str, str]:
    marks = list(IMAGE_MARK.finditer(text))
    end = marks[-1].end() if marks else 0
    return text[:end], text[end:]


def _split_template(template: str) -> tuple[str, str]:
    """The template before and from its `{answer}`, or its first field."""
    try:
        fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"--data.template is not a template: {error}") from error
    first = "answer" if "answer" in fields else (fields[0] if fields else None)
    if first is None:
        raise ValueError("--data.template has no field such as {name}")
    start = template.index("{" + first)
    return template[:start], template[start:]


def _filled(template: str, record: Mapping[str, Any]) -> str:
    try:
        text = template.format_map({name: value for name, value in record.items() if value is not None})
    except (LookupError, AttributeError, ValueError) as error:
        fields = ", ".join(name for name, value in record.items() if value is not None)
        raise ValueError(f"--data.template cannot be filled from its fields {fields}: {error}") from error
    if any(text.count(token) != template.count(token) for token in (IMAGE_TOKEN, FAKE_TOKEN)):
        raise ValueError("one of its fields holds a literal image token; take it out")
    return text


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record[name]
    if isinstance(value, int | float):  # a number is a fine answer
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'its "{name}" is {"empty" if isinstance(value, str) else type(value).__name__}, not a text')
    return value
