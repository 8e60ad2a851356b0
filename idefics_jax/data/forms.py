"""Forms of a record: a conversation, or text with marks where its images go."""

import reprlib
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, NamedTuple

from idefics_jax.data.fields import ANSWERS, IMAGES, ImageSource, answer_of, has, image_of, images_of, text_of
from idefics_jax.processing.chat import place_images, read_message
from idefics_jax.processing.prompts import FAKE_TOKEN, IMAGE_MARK, IMAGE_TOKEN, Prompt, Text
from idefics_jax.utils.paths import AnyPath

FORMS = 'a record has "messages", "content", "text", "question" and "answer", or fields for --data.template'
ANSWER_FIELDS = ("answer", "answers[0]")  # of a template


class Document(NamedTuple):
    """Text with an `<image>` for each of the `images`; what is asked for comes after what is given."""

    given: str
    asked: str
    images: list[ImageSource]


def columns_read(record: Mapping[str, Any], template: str | None) -> set[str]:
    """The columns of a record that its form reads."""
    if record.get("messages") is not None:
        return {"messages", *IMAGES}
    if template is None and _is_question(record):
        return {"question", *ANSWERS, *IMAGES}
    if has(record, "content"):
        return {"content", *IMAGES}
    return {"text", *IMAGES} if template is None else {*template_columns(template), *IMAGES}


def document_of(record: Mapping[str, Any], folder: AnyPath, template: str | None) -> Document:
    """The text and images of a record that is no conversation; what is asked for is the text after the last image.

    With a template, it is what comes from `{answer}` or `{answers[0]}` on, or from its first field on without one.

    Raises:
        ValueError: no such record, not one image for each mark, or image tokens in a text.
    """
    images = images_of(record, folder)
    if has(record, "content"):
        return _interleaved_document(record["content"], images, folder)
    if template is None:
        if record.get("text") is None:
            raise ValueError(f"it has the fields {', '.join(record) or 'none'}; {FORMS}")
        given, asked = "", text_of(record["text"], "text").strip()
    else:
        given, asked = (_filled(part, record) for part in split_template(template))
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
    """The conversation in a record as `chat_prompt` takes it, with the images found; None if it has another form.

    Images stand in the messages, or in the record's columns in the order of the parts `{"type": "image"}` and of the
    `<image>` marks in the messages; without any, all go in front of the first message's text.

    Raises:
        ValueError: not one image for each place, or image tokens in a text.
    """
    if record.get("messages") is not None:
        messages = record["messages"]
        if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
            raise ValueError('its "messages" are not a list of objects with role and content')
    elif template is None and _is_question(record):
        messages = [
            {"role": "user", "content": text_of(record["question"], "question")},
            {"role": "assistant", "content": answer_of(record)},
        ]
    else:
        return None
    return with_images(messages, images_of(record, folder), folder)


def with_images(
    messages: Sequence[Mapping[str, Any]], images: Sequence[ImageSource], folder: AnyPath
) -> list[dict[str, Any]]:
    """Messages as `chat_prompt` takes them, their images found from `folder` on, and `images` where they belong."""
    if not messages:
        raise ValueError("The conversation has no messages")
    read = [read_message(message, f"Message {number}") for number, message in enumerate(messages)]
    parts = [[part if _is_found(part) else image_of(part, folder) for part in parts] for _, parts in read]
    placed = place_images(parts, images, "it")
    return [
        {
            "role": role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, Text) else {"type": "image", "image": part}
                for part in parts
            ],
        }
        for (role, _), parts in zip(read, placed, strict=True)
    ]


def _is_found(part: Any) -> bool:
    return part is None or isinstance(part, Text)


def _is_question(record: Mapping[str, Any]) -> bool:
    return has(record, "question") and any(name in record for name in ANSWERS)


def _interleaved_document(content: Any, beside: list[ImageSource], folder: AnyPath) -> Document:
    """A list of strings and `{"image": path}`; a space goes between strings in a row."""
    if not isinstance(content, list):
        raise ValueError(f'its "content" is a {type(content).__name__}, not a list of strings and images')
    text, images, after_text = "", [], False
    for item in content:
        if isinstance(item, str):
            if IMAGE_TOKEN in item or FAKE_TOKEN in item:
                raise ValueError("its text holds a literal image token; take it out")
            text += (" " if after_text else "") + item
        elif isinstance(item, Mapping) and set(item) == {"image"}:
            text += IMAGE_TOKEN
            images.append(image_of(item["image"], folder))
        else:
            raise ValueError(f'its "content" holds neither a string nor {{"image": path}}: {reprlib.repr(item)}')
        after_text = isinstance(item, str)
    if beside and not images:
        text, images = IMAGE_TOKEN * len(beside) + text, beside
    if beside and images != beside:
        raise ValueError('it has images in its "content" and others beside it; name each image once')
    return Document(*_split_after_images(text.strip()), images)


def _split_after_images(text: str) -> tuple[str, str]:
    marks = list(IMAGE_MARK.finditer(text))
    end = marks[-1].end() if marks else 0
    return text[:end], text[end:]


def template_columns(template: str) -> set[str]:
    """The columns that a template names.

    Raises:
        ValueError: not a template, or one without a field.
    """
    return {name.partition("[")[0].partition(".")[0] for _, name in _pieces(template) if name is not None}


def split_template(template: str) -> tuple[str, str]:
    """The template before and from its `{answer}` or `{answers[0]}`, or its first field.

    Raises:
        ValueError: not a template, or one without a field.
    """
    pieces = _pieces(template)
    names = [name for _, name in pieces]
    first = next((name for name in ANSWER_FIELDS if name in names), None)
    if first is None:
        first = next(name for name in names if name is not None)
    place = names.index(first)
    return "".join(text for text, _ in pieces[:place]), "".join(text for text, _ in pieces[place:])


def _pieces(template: str) -> list[tuple[str, str | None]]:
    """The stretches of a template as they are written: text, with the name None, and fields with their names."""
    pieces: list[tuple[str, str | None]] = []
    try:
        for literal, name, spec, conversion in Formatter().parse(template):
            pieces.append((literal.replace("{", "{{").replace("}", "}}"), None))
            if name is not None:
                ending = ("!" + conversion if conversion else "") + (":" + spec if spec else "")
                pieces.append(("{" + name + ending + "}", name))
    except ValueError as error:
        raise ValueError(f"--data.template is not a template: {error}") from error
    if all(name is None for _, name in pieces):
        raise ValueError("--data.template has no field such as {name}")
    return pieces


class _Filler(Formatter):
    """Puts texts and numbers into a template, and nothing else."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        value, first = super().get_field(field_name, args, kwargs)
        if not isinstance(value, str):
            text_of(value, field_name)
        return value, first


def _filled(template: str, record: Mapping[str, Any]) -> str:
    fields = {name: value for name, value in record.items() if value is not None}
    try:
        text = _Filler().vformat(template, (), fields)
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"--data.template cannot be filled from its fields {', '.join(fields)}: {error}") from error
    for token in (IMAGE_TOKEN, FAKE_TOKEN):
        if text.count(token) != template.count(token):
            raise ValueError("one of its fields holds a literal image token; take it out")
    return text
