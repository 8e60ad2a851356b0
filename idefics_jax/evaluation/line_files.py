"""Classes, as folders or as labels in lines, and lines of questions of any kind."""

from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from idefics_jax.evaluation.examples import Data, Example, Malformed, Problem, gather
from idefics_jax.evaluation.task_files import IMAGE_SUFFIXES, image_path, read_lines, text_of, texts_of
from idefics_jax.paths import as_path

LABELS = "labels.jsonl"


def read_classes(path: str, folder: str, limit: int | None) -> Data:
    """A folder with a folder of images for each class, or a JSONL file (`labels.jsonl` in the folder) of lines
    `{"image": ..., "label": ...}`. All classes are candidates for each image, in alphabetical order.

    Of folders come the first image of each class, then the second of each.
    """
    root = as_path(path)
    labels = root / LABELS if root.is_dir() else root
    if labels.is_file():
        lines = list(read_lines(labels))
        classes = tuple(sorted({str(line["label"]) for _, line in lines if line and line.get("label") is not None}))

        def labelled(number: int, record: Any) -> Example:
            del number
            image, label = str(text_of(record, "image")), str(text_of(record, "label"))
            id = text_of(record, "id") if "id" in record else image
            fields = _other_fields(record, {"id", "image", "label"})
            return Example(id, (image_path(folder, image),), "", (label,), classes, fields)

        return gather(_of_lines(lines, labelled, str(labels)), "id", "label", limit)
    if not root.is_dir():
        raise FileNotFoundError(f"{path} is neither a folder of classes nor a JSONL file.")
    folders = sorted(child for child in Path(path).iterdir() if child.is_dir())
    classes = tuple(child.name for child in folders)

    def found() -> Iterator[Example | Problem]:
        images = [
            sorted(file for file in child.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES) for child in folders
        ]
        for child, files in zip(folders, images, strict=True):
            if not files:
                yield Problem("empty class", child.name, f"The folder {child} holds no image.")
        # One of each class in turn, so that the first few are of all classes.
        for file in chain.from_iterable(zip_longest(*images)):
            if file is not None:
                name = file.parent.name
                yield Example(f"{name}/{file.name}", (str(file),), "", (name,), classes, {})

    return gather(found(), "id", "label", limit)


def read_jsonl(file: str, folder: str, limit: int | None) -> Data:
    """Lines with `image` or `images`, `question`, `answers` or `answer`, perhaps `candidates` and `id` (default: the
    line's number); what else they hold can be named in a prompt's template.

    Raises:
        ValueError: some lines have candidates and others have not.
    """
    lines = list(read_lines(as_path(file)))
    closed = {"candidates" in line for _, line in lines if line}
    if len(closed) > 1:
        raise ValueError(f"Some lines of {file} have candidates and others have not; make them two files.")

    def example(number: int, record: Any) -> Example | Problem:
        id = text_of(record, "id") if record and "id" in record else number
        images = record.get("images", [record["image"]] if "image" in record else [])
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            raise Malformed(f"has {images!r} as its images")
        references = texts_of(record.get("answers", [record["answer"]] if "answer" in record else []), "answer")
        candidates = texts_of(record["candidates"], "answer") if "candidates" in record else None
        question = str(text_of(record, "question")) if "question" in record else ""
        fields = _other_fields(record, {"id", "image", "images", "question", "answer", "answers", "candidates"})
        paths = tuple(image_path(folder, image) for image in images)
        found = Example(id, paths, question, references, candidates, fields)
        if not references and ("answers" in record or "answer" in record):
            return Problem("no answers", id, f"Line {number} of {file} has no answer.")
        if candidates is not None and len(set(candidates)) < max(2, len(candidates)):
            return Problem("candidates", id, f"Line {number} of {file} needs two or more candidates, all different.")
        if candidates is not None and references and found.answer not in candidates:
            return Problem(
                "answer no candidate", id, f"The answer {found.answer!r} of line {number} of {file} is no candidate."
            )
        return found

    return gather(_of_lines(lines, example, file), "id", "answer", limit)


def _of_lines(
    lines: list[tuple[int, Any]], read: Callable[[int, Any], Example | Problem], file: str
) -> Iterator[Example | Problem]:
    for number, record in lines:
        try:
            if record is None:
                raise Malformed("is no JSON object")
            yield read(number, record)
        except Malformed as error:
            yield Problem("malformed line", None, f"Line {number} of {file} {error}.")


def _other_fields(record: dict[str, Any], known: set[str]) -> dict[str, str]:
    return {name: str(value) for name, value in record.items() if name not in known and isinstance(value, str | int)}
