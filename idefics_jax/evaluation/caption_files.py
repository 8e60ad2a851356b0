"""Captions of COCO, NoCaps, TextCaps and Flickr30k, and of records with an image and its text."""

from collections.abc import Iterator
from typing import Any

from idefics_jax.data.fields import IMAGES, has, text_of, texts_of
from idefics_jax.data.forms import document_of
from idefics_jax.data.records import is_records, open_source
from idefics_jax.data.sources import Source
from idefics_jax.evaluation.examples import Data, Example, Problem, gather, parsed
from idefics_jax.evaluation.line_files import read_records
from idefics_jax.evaluation.task_files import id_of, listed, naming, read_benchmark
from idefics_jax.processing.prompts import IMAGE_TOKEN
from idefics_jax.utils.paths import AnyPath, as_path


def read_captions(file: str, folder: str, image_name: str | None, split: str | None, limit: int | None) -> Data:
    """COCO's and NoCaps' form, TextCaps' list of captions, Karpathy's of images with their sentences (Flickr30k), or
    records with an image and its "text", as training reads them."""
    if is_records(as_path(file)):
        return _read_texts(open_source(as_path(file)), as_path(folder), split, limit)
    content = read_benchmark(file)
    image_of = naming(folder, image_name)
    captions: dict[str, list[str]] = {}  # by the id as a text: one list may have "1" and the other 1
    ids: dict[str, Any] = {}  # of the images with captions, as they are written
    problems: list[Problem] = []
    records = listed(content, file, "images", "data")
    has_captions = True
    if "images" not in content:  # TextCaps: a record for each caption
        images = {}
        for number, record in enumerate(records):
            id = record.get("image_id") if isinstance(record, dict) else number
            images.setdefault(str(id), record)
        problems += _add_captions(captions, ids, records, "caption_str", file)
        records, has_captions = list(images.values()), bool(captions)
    elif has_captions := "annotations" in content:
        problems += _add_captions(captions, ids, listed(content, file, "annotations"), "caption", file)
    if split is not None:
        chosen = [record for record in records if isinstance(record, dict) and record.get("split") == split]
        if not chosen:
            raise ValueError(f"No image of {file} is of the split {split!r}.")
        records = chosen

    def image(record: Any) -> Example | Problem:
        id = id_of(record, "id", "image_id", "cocoid", "imgid")
        references = tuple(captions.pop(str(id), ()))
        if "sentences" in record:
            references = texts_of(record["sentences"], "raw")
        if not references and (has_captions or "sentences" in record):
            return Problem("no captions", id, f"{file} has no caption of image {id}.")
        return Example(id, (image_of(record),), "", references, None, {})

    def found() -> Iterator[Example | Problem]:
        yield from problems
        yield from parsed(records, image, file)
        for id in [ids[key] for key in captions] if split is None else ():
            yield Problem("caption without image", id, f"{file} has captions of image {id}, which it does not list.")

    return gather(found(), "image_id", "caption", limit)


def _add_captions(
    captions: dict[str, list[str]], ids: dict[str, Any], records: list[Any], name: str, file: str
) -> list[Problem]:
    """Adds the captions of records to those of their images; records that say nothing are left out."""
    problems = []
    for number, record in enumerate(records):
        if not isinstance(record, dict) or not has(record, name):
            continue
        try:
            id = record.get("image_id")
            captions.setdefault(str(id), []).append(text_of(record[name], name))
            ids.setdefault(str(id), id)
        except ValueError as error:
            problems.append(Problem("malformed record", None, f"Caption {number} of {file}: {error}."))
    return problems


def _read_texts(source: Source, folder: AnyPath, split: str | None, limit: int | None) -> Data:
    """Records of images with a text; those of one image are one example."""
    if split is not None:
        raise ValueError(f"{source.name} has no splits; leave out --split.")

    def example(number: int, record: dict[str, Any]) -> Example:
        if has(record, "question") or record.get("messages") is not None:
            raise ValueError("it has a question; idefics-jax eval jsonl asks it")
        given, caption, images = document_of(record, folder, None)
        if len(images) != 1 or given.strip() != IMAGE_TOKEN or not caption.strip():
            raise ValueError("it is not one image and the text after it, its caption")
        named = next((record[name] for name in IMAGES if has(record, name)), None)
        named = named[0] if isinstance(named, list) else named
        id: Any = id_of(record, "id") if has(record, "id") else named
        usable = isinstance(id, str | int) and not (isinstance(id, str) and id.startswith("data:"))
        return Example(id if usable else source.label(number), (str(images[0]),), "", (caption.strip(),), None, {})

    examples: dict[Any, Example] = {}
    problems: list[Problem] = []
    for item in read_records(source, example):
        if isinstance(item, Problem):
            problems.append(item)
        elif item.id in examples:
            known = examples[item.id]
            examples[item.id] = known._replace(references=known.references + item.references)
        else:
            examples[item.id] = item
    return gather([*problems, *examples.values()], "image_id", "caption", limit)
