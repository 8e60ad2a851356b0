"""Captions of COCO, NoCaps, TextCaps and Flickr30k."""

from collections.abc import Iterator
from typing import Any

from idefics_jax.evaluation.examples import Data, Example, Problem, gather, parsed
from idefics_jax.evaluation.task_files import listed, naming, read_json, text_of, texts_of
from idefics_jax.paths import as_path


def read_captions(file: str, folder: str, image_name: str | None, split: str | None, limit: int | None) -> Data:
    """COCO's and NoCaps' form, TextCaps' list of captions, or Karpathy's of images with their sentences (Flickr30k)."""
    content = read_json(as_path(file))
    image_of = naming(folder, image_name)
    captions: dict[Any, list[str]] = {}
    records = listed(content, file, "images", "data")
    if "images" not in content:  # TextCaps: a record for each caption
        records = _grouped(records, captions)
        has_captions = bool(captions)
    elif has_captions := "annotations" in content:
        for record in listed(content, file, "annotations"):
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
        return Example(id, (image_of(record),), "", references, None, {})

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
