"""What every task's files are read into: examples, and what is wrong with those that are left out."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from idefics_jax.processing.images import image_source, is_remote, short_name

Id: TypeAlias = int | str


class Example(NamedTuple):
    """One question about images, or an image to describe or to name.

    Attributes:
        id: unique in its file.
        images: paths or URLs.
        question: "" where none is asked.
        references: annotated answers, captions, or the true class alone; empty where there are none.
        candidates: the answers to choose from; None where the answer is free.
        fields: what else a prompt's template may name.
    """

    id: Id
    images: tuple[str, ...]
    question: str
    references: tuple[str, ...]
    candidates: tuple[str, ...] | None
    fields: Mapping[str, str]

    @property
    def answer(self) -> str:
        """The most frequent of the references, the first of them where several are: "" without any."""
        return Counter(self.references).most_common(1)[0][0] if self.references else ""


class Problem(NamedTuple):
    """Why something in the files is not asked, or has no answer that counts.

    Attributes:
        kind: a few words, the same for all of its kind.
        id: of the example, as far as it has one.
        text: a sentence.
    """

    kind: str
    id: Id | None
    text: str


class Data(NamedTuple):
    """What a file was read into.

    Attributes:
        examples: in the order of the file.
        problems: what was left out.
        id_name, answer_name: what the benchmark's server calls them in a file of predictions.
    """

    examples: list[Example]
    problems: list[Problem]
    id_name: str
    answer_name: str


def gather(found: Iterable[Example | Problem], id_name: str, answer_name: str, limit: int | None) -> Data:
    """Parts examples from problems, up to the `limit` of examples; an id that was there before is a problem."""
    examples: list[Example] = []
    problems: list[Problem] = []
    seen: set[Id] = set()
    for item in found:
        if isinstance(item, Problem):
            problems.append(item)
        elif item.id in seen:
            problems.append(Problem("duplicate id", item.id, f"The id {item.id} occurs twice; the second is left out."))
        else:
            seen.add(item.id)
            examples.append(item)
            if len(examples) == limit:
                break
    return Data(examples, problems, id_name, answer_name)


def parsed(records: Iterable[Any], read: Callable[[Any], Example | Problem], where: str) -> Iterator[Example | Problem]:
    """`read` of every record; one that it cannot understand is a problem."""
    for number, record in enumerate(records):
        try:
            yield read(record)
        except ValueError as error:
            yield Problem("malformed record", None, f"Record {number} of {where}: {error}.")


def without_missing_images(data: Data, remote_images: bool) -> Data:
    """The data whose images are there, the others as problems; URLs are only read when they are needed.

    Args:
        remote_images: images at http(s) addresses are read; otherwise they are problems too.
    """
    kept, missing = [], []
    for example in data.examples:
        found = (_absence(image, example.id, remote_images) for image in example.images)
        if problem := next((problem for problem in found if problem is not None), None):
            missing.append(problem)
        else:
            kept.append(example)
    return data._replace(examples=kept, problems=[*data.problems, *missing])


def _absence(image: str, id: Id, remote_images: bool) -> Problem | None:
    """What is wrong with an image without reading it."""
    source, name = image_source(image), short_name(image)
    if isinstance(source, str):
        if remote_images or not is_remote(source):
            return None
        return Problem("remote image", id, f"The image {name} of {id} is not fetched without --remote-images.")
    if os.path.isfile(source):
        return None
    wrong = "is no regular file" if os.path.exists(source) else "is not there"
    return Problem("missing image", id, f"The image {name} of {id} {wrong}.")
