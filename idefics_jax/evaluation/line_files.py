"""Classes, as folders or as labels in records, and records of questions of any kind."""

from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from idefics_jax.data.fields import (
    ANSWERS,
    IMAGES,
    ImageSource,
    answers_of,
    check_unread_images,
    has,
    images_of,
    text_of,
    texts_of,
)
from idefics_jax.data.forms import messages_of, with_images
from idefics_jax.data.records import METADATA, open_source
from idefics_jax.data.sources import JsonLines, Source
from idefics_jax.evaluation.examples import Data, Example, Problem, gather
from idefics_jax.evaluation.task_files import id_of, is_image_name
from idefics_jax.utils.paths import AnyPath, as_path

LABELS = "labels.jsonl"
KNOWN = {"id", "question", "candidates", *ANSWERS, *IMAGES}


def read_classes(path: str, folder: str, limit: int | None) -> Data:
    """A folder with a folder of images for each class, or records with an image and a "label" (`labels.jsonl` or
    `metadata.*` in the folder). All classes are candidates for each image, in alphabetical order.

    Of folders come the first image of each class, then the second of each.
    """
    root = as_path(path)
    labels = root / LABELS if (root / LABELS).is_file() else root
    if labels.is_file() or any((root / name).is_file() for name in METADATA):
        return _read_labels(open_source(labels, JsonLines), as_path(folder), limit)
    if not root.is_dir():
        raise FileNotFoundError(f"{path} is neither a folder of classes nor a JSONL file.")
    folders = sorted(child for child in Path(path).iterdir() if child.is_dir())
    classes = tuple(child.name for child in folders)

    def found() -> Iterator[Example | Problem]:
        images = [sorted(file for file in child.iterdir() if is_image_name(file.name)) for child in folders]
        for child, files in zip(folders, images, strict=True):
            if not files:
                yield Problem("empty class", child.name, f"The folder {child} holds no image.")
        # One of each class in turn, so that the first few are of all classes.
        for file in chain.from_iterable(zip_longest(*images)):
            if file is not None:
                name = file.parent.name
                yield Example(f"{name}/{file.name}", (str(file),), "", (name,), classes, {})

    return gather(found(), "id", "label", limit)


def _read_labels(source: Source, folder: AnyPath, limit: int | None) -> Data:
    def label_of(record: dict[str, Any]) -> str:
        if not has(record, "label"):
            raise ValueError("it has no label")
        return text_of(record["label"], "label")

    found = list(read_records(source, lambda number, record: (number, record, label_of(record))))
    classes = tuple(sorted({item[2] for item in found if not isinstance(item, Problem)}))

    def labelled(number: int, record: dict[str, Any], label: str) -> Example:
        images = images_of(record, folder)
        if not images:
            check_unread_images(record, {"id", "label", *IMAGES}, folder)
        if len(images) != 1:
            raise ValueError(f"it has {len(images)} images, not one")
        named = next(record[name] for name in IMAGES if has(record, name))
        named = named[0] if isinstance(named, list) else named
        id = id_of(record, "id") if has(record, "id") else named
        id = source.label(number) if isinstance(id, str) and id.startswith("data:") else id
        return Example(id, (str(images[0]),), "", (label,), classes, _other_fields(record, {"id", "label", *IMAGES}))

    def examples() -> Iterator[Example | Problem]:
        for item in found:
            if isinstance(item, Problem):
                yield item
            else:
                yield _example(source, item[0], lambda item=item: labelled(*item))

    return gather(examples(), "id", "label", limit)


def read_jsonl(file: str, folder: str, limit: int | None) -> Data:
    """Records with `image` or `images`, `question`, `answers` or `answer`, perhaps `candidates` and `id` (default: the
    line's number), or with `messages` of one question and its answer, as training reads them; what else they hold can
    be named in a prompt's template.

    Raises:
        ValueError: some records have candidates and others have not, or the file is a benchmark's.
    """
    source = open_source(as_path(file), JsonLines)
    closed: set[bool] = set()

    def example(number: int, record: dict[str, Any]) -> Example | Problem:
        lists = [name for name in ("questions", "annotations", "data") if isinstance(record.get(name), list)]
        if len(source) == 1 and lists:
            raise ValueError("it is a benchmark's file; idefics-jax eval vqa or captions reads it")
        id = id_of(record, "id") if has(record, "id") else source.label(number)
        closed.add(record.get("candidates") is not None)
        candidates = texts_of(record["candidates"], "answer") if record.get("candidates") is not None else None
        question, images, references = _asked(record, as_path(folder), candidates is not None)
        paths = tuple(str(image) for image in images)
        found = Example(id, paths, question, references, candidates, _other_fields(record, KNOWN))
        name = source.describe(number)
        if not references and any(name in record for name in ANSWERS):
            return Problem("no answers", id, f"{name}: it has no answer.")
        if candidates is not None and len(set(candidates)) < max(2, len(candidates)):
            return Problem("candidates", id, f"{name}: it needs two or more candidates, all different.")
        if candidates is not None and references and found.answer not in candidates:
            return Problem("answer no candidate", id, f"{name}: its answer {found.answer!r} is no candidate.")
        return found

    data = gather(read_records(source, example), "id", "answer", limit)
    if len(closed) > 1:
        raise ValueError(f"Some lines of {file} have candidates and others have not; make them two files.")
    return data


def _asked(record: dict[str, Any], folder: AnyPath, closed: bool) -> tuple[str, list[ImageSource], tuple[str, ...]]:
    """Question, images and answers of a record."""
    references = answers_of(record)
    if record.get("messages") is not None:
        messages = messages_of(record, folder, None) or []
        if [message["role"] for message in messages] not in (["user"], ["user", "assistant"]):
            raise ValueError("its messages are not one question and its answer, which is what eval jsonl asks")
        question, images = _question(messages[0]["content"])
        if len(messages) > 1:
            answer, pictures = _question(messages[1]["content"])
            if pictures:
                raise ValueError("its answer holds an image")
            references = references or (answer,)
    elif has(record, "question"):
        text = text_of(record["question"], "question")
        (message,) = with_images([{"role": "user", "content": text}], images_of(record, folder), folder)
        question, images = _question(message["content"])
    elif has(record, "content") or (has(record, "text") and not closed and not references):
        raise ValueError('it has no "question"; eval captions reads images with their "text"')
    else:
        question, images = "", images_of(record, folder)
    if not images:
        check_unread_images(record, KNOWN | {"messages"}, folder)
    return question, images, references


def _question(content: list[dict[str, Any]]) -> tuple[str, list[ImageSource]]:
    """Text and images of a message; the images come before the text or after it."""
    texts = [place for place, part in enumerate(content) if part["type"] == "text"]
    if texts and texts[-1] - texts[0] >= len(texts):
        raise ValueError("its images stand amid its text, where a prompt's template cannot put them")
    text = "".join(part["text"] for part in content if part["type"] == "text")
    return text, [part["image"] for part in content if part["type"] == "image"]


def read_records(source: Source, read: Callable[[int, dict[str, Any]], Any]) -> Iterator[Any]:
    """What `read` makes of each record; one that cannot be used is a problem."""
    for number in range(len(source)):
        yield _example(source, number, lambda number=number: read(number, source[number]))


def _example(source: Source, number: int, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except ValueError as error:
        return Problem("malformed record", None, f"{source.describe(number)}: {error}.")


def _other_fields(record: dict[str, Any], known: set[str]) -> dict[str, str]:
    """Texts and numbers that a template may name."""
    fields = {}
    for name, value in record.items():
        if name in known or isinstance(value, bool) or not isinstance(value, str | int | float):
            continue
        fields[name] = value if isinstance(value, str) and not value.strip() else text_of(value, name)
    return fields
