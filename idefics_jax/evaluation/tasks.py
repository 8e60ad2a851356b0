"""The benchmarks' own files, read into examples: VQAv2's form, COCO captions', folders of classes, and JSONL."""

import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from idefics_jax.evaluation.examples import (
    Data,
    Example,
    Malformed,
    Problem,
    gather,
    image_path,
    parsed,
    read_json,
    read_lines,
    text_of,
    texts_of,
)
from idefics_jax.paths import as_path

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
LABELS = "labels.jsonl"


def read_data(
    task: str, files: list[str], images: str | None, image_name: str | None, split: str | None, limit: int | None = None
) -> Data:
    """A task's data.

    Args:
        task: "vqa", "captions", "classification" or "jsonl".
        files: for "vqa" the questions and perhaps the annotations; otherwise one.
        images: the images' folder; default: the folder of the first file.
        image_name: a pattern such as `COCO_val2014_{image_id:012d}.jpg`, where the files do not name the images.
        split: of a file that holds several, the one to take.
        limit: the most examples to read.

    Raises:
        OSError, ValueError: one sentence on what is wrong with the files as a whole.
    """
    if len(files) > (2 if task == "vqa" else 1):
        expected = "the questions and their annotations" if task == "vqa" else "one file"
        raise ValueError(f"{task} reads {expected}, and {len(files)} were given.")
    first = as_path(files[0])
    folder = images if images is not None else str(first if first.is_dir() else first.parent)
    if task == "vqa":
        data = read_vqa(files, folder, image_name, limit)
    elif task == "captions":
        data = read_captions(files[0], folder, image_name, split, limit)
    elif task == "classification":
        data = read_classes(files[0], folder, limit)
    else:
        data = read_jsonl(files[0], folder, limit)
    if not data.examples and not data.problems:
        raise ValueError(f"{files[0]} holds no examples.")
    return data


def read_vqa(files: list[str], folder: str, image_name: str | None, limit: int | None) -> Data:
    """VQAv2's and OK-VQA's questions and annotations, TextVQA's file with both, or VizWiz's list.

    Without annotations there are no references: answers are written for the benchmark's server.
    """
    content = read_json(as_path(files[0]))
    questions = content if isinstance(content, list) else _listed(content, files[0], "questions", "data")
    annotated = None
    if len(files) > 1:
        content = read_json(as_path(files[1]))
        annotated = content if isinstance(content, list) else _listed(content, files[1], "annotations")
    # VizWiz has one question for each image, and its server knows it by the image's name.
    by_image = bool(questions) and isinstance(questions[0], dict) and "question_id" not in questions[0]
    names = ("image",) if by_image else ("question_id",)
    naming = _naming(folder, image_name)
    answers: dict[Any, Any] = {}

    def found() -> Iterator[Example | Problem]:
        for item in parsed(annotated or (), lambda record: _annotation(record, names), files[-1]):
            if isinstance(item, Problem):
                yield item
            else:
                answers[item.id] = item.references
        used = set()
        for item in parsed(questions, question, files[0]):
            used.add(item.id)
            yield item
        for id in answers.keys() - used:
            yield Problem("annotation without question", id, f"{files[1]} has answers to {id}, which is not asked.")

    def question(record: Any) -> Example | Problem:
        id, text = text_of(record, *names), str(text_of(record, "question"))
        references: tuple[str, ...] = ()
        if annotated is not None:
            if id not in answers:
                return Problem("question without annotation", id, f"{files[1]} has no answers to question {id}.")
            references = answers[id]
        elif "answers" in record:
            references = texts_of(record["answers"], "answer")
        if not references and (annotated is not None or "answers" in record):
            return Problem("no answers", id, f"Question {id} has no annotated answer.")
        return Example(id, (naming(record),), text, references, None, {})

    return gather(found(), names[0], "answer", limit)


def _annotation(record: Any, names: tuple[str, ...]) -> Example:
    return Example(text_of(record, *names), (), "", texts_of(record.get("answers"), "answer"), None, {})


def read_captions(file: str, folder: str, image_name: str | None, split: str | None, limit: int | None) -> Data:
    """COCO's and NoCaps' form, TextCaps' list of captions, or Karpathy's of images with their sentences (Flickr30k)."""
    content = read_json(as_path(file))
    naming = _naming(folder, image_name)
    captions: dict[Any, list[str]] = {}
    records = _listed(content, file, "images", "data")
    if "images" not in content:  # TextCaps: a record for each caption
        records = _grouped(records, captions)
        has_captions = bool(captions)
    elif has_captions := "annotations" in content:
        for record in _listed(content, file, "annotations"):
            if isinstance(record, dict) and isinstance(record.get("caption"), str) and record["caption"].strip():
                captions.setdefault(record.get("image_id"), []).append(record["caption"])
    if split is not None:
        chosen = [record for record in records if isinstance(record, dict) and record.get("split") == split]
        if not chosen:
            raise ValueError(f"No image of {file} is of the split {split!r}.")
        records = chosen

    def image(record: Any) -> Example | Problem:
        id = text_of(record, "id", "image_id", "cocoid", "imgid")
        references = tuple(captions.pop(id, ()))
        if "sentences" in record:
            references = texts_of(record["sentences"], "raw")
        if not references and (has_captions or "sentences" in record):
            return Problem("no captions", id, f"{file} has no caption of image {id}.")
        return Example(id, (naming(record),), "", references, None, {})

    def found() -> Iterator[Example | Problem]:
        yield from parsed(records, image, file)
        for id in captions if split is None else ():
            yield Problem("caption without image", id, f"{file} has captions of image {id}, which it does not list.")

    return gather(found(), "image_id", "caption", limit)


def _grouped(records: list[Any], captions: dict[Any, list[str]]) -> list[Any]:
    """One record for each image; its captions are added to `captions`."""
    images = {}
    for record in records:
        if isinstance(record, dict):
            id = record.get("image_id")
            images.setdefault(id, record)
            if isinstance(record.get("caption_str"), str) and record["caption_str"].strip():
                captions.setdefault(id, []).append(record["caption_str"])
        else:
            images[len(images)] = record
    return list(images.values())


def read_classes(path: str, folder: str, limit: int | None) -> Data:
    """A folder with a folder of images for each class, or a JSONL file (`labels.jsonl` in the folder) of lines
    `{"image": ..., "label": ...}`. All classes are candidates for each image, in alphabetical order."""
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
        for child in folders:
            files = sorted(file for file in child.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not files:
                yield Problem("empty class", child.name, f"The folder {child} holds no image.")
            for file in files:
                yield Example(f"{child.name}/{file.name}", (str(file),), "", (child.name,), classes, {})

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


def _listed(content: Any, file: str, *names: str) -> list[Any]:
    """The first list of these names in a file's contents."""
    for name in names:
        if isinstance(content, dict) and isinstance(content.get(name), list):
            return content[name]
    raise ValueError(f"{file} has no list named {' or '.join(names)}.")


def _naming(folder: str, pattern: str | None) -> Callable[[Any], str]:
    """Gives a record's image: by the pattern, or as the record names it, or `{image_id}.jpg`.

    Raises:
        ValueError: the pattern names none of the record's values, or is none.
    """
    if pattern is not None:
        try:
            named = [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
        except ValueError as error:
            raise ValueError(f"The pattern of image names {pattern!r} is none: {error}.") from error
        if not named:
            raise ValueError(f"The pattern of image names {pattern!r} names nothing, such as {{image_id}}.")

    def name(record: Any) -> str:
        if pattern is not None:
            try:
                return image_path(folder, pattern.format_map(record))
            except (KeyError, ValueError, IndexError, TypeError) as error:
                raise Malformed(f"does not fit the pattern of image names {pattern!r} ({error})") from error
        for key in ("file_name", "image", "filename", "image_name"):
            if isinstance(record.get(key), str):
                return image_path(folder, _with_suffix(record[key]))
        return image_path(folder, f"{text_of(record, 'image_id', 'id')}.jpg")

    return name


def _with_suffix(name: str) -> str:
    """TextCaps names images without `.jpg`."""
    return name if Path(name).suffix.lower() in IMAGE_SUFFIXES else f"{name}.jpg"
