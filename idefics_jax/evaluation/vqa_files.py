"""Questions and annotations of VQAv2, OK-VQA, TextVQA and VizWiz."""

from collections.abc import Iterator
from typing import Any

from idefics_jax.data.fields import text_of, texts_of
from idefics_jax.evaluation.examples import Data, Example, Problem, gather, parsed
from idefics_jax.evaluation.task_files import id_of, listed, naming, read_benchmark


def read_vqa(files: list[str], folder: str, image_name: str | None, limit: int | None) -> Data:
    """VQAv2's and OK-VQA's questions and annotations, TextVQA's file with both, or VizWiz's list.

    Without annotations there are no references: answers are written for the benchmark's server.
    """
    content = read_benchmark(files[0])
    questions = content if isinstance(content, list) else listed(content, files[0], "questions", "data")
    annotated = None
    if len(files) > 1:
        content = read_benchmark(files[1])
        annotated = content if isinstance(content, list) else listed(content, files[1], "annotations")
    # VizWiz has one question for each image, and its server knows it by the image's name.
    by_image = bool(questions) and isinstance(questions[0], dict) and "question_id" not in questions[0]
    names = ("image",) if by_image else ("question_id",)
    image_of = naming(folder, image_name)
    answers: dict[str, Example] = {}  # by the id as a text: one file may have "1" and the other 1

    def found() -> Iterator[Example | Problem]:
        for item in parsed(annotated or (), lambda record: _annotation(record, names), files[-1]):
            if isinstance(item, Problem):
                yield item
            elif str(item.id) in answers:
                yield Problem("duplicate annotation", item.id, f"{files[-1]} has answers to {item.id} twice.")
            else:
                answers[str(item.id)] = item
        used = set()
        for item in parsed(questions, question, files[0]):
            used.add(str(item.id))
            yield item
        for key in answers.keys() - used:
            id = answers[key].id
            yield Problem("annotation without question", id, f"{files[1]} has answers to {id}, which is not asked.")

    def question(record: Any) -> Example | Problem:
        id = id_of(record, *names)
        if "question" not in record:
            raise ValueError("it has no question")
        text = text_of(record["question"], "question")
        references: tuple[str, ...] = ()
        if annotated is not None:
            if str(id) not in answers:
                return Problem("question without annotation", id, f"{files[1]} has no answers to question {id}.")
            references = answers[str(id)].references
        elif "answers" in record:
            references = texts_of(record["answers"], "answer")
        if not references and (annotated is not None or "answers" in record):
            return Problem("no answers", id, f"Question {id} has no annotated answer.")
        return Example(id, (image_of(record),), text, references, None, {})

    return gather(found(), names[0], "answer", limit)


def _annotation(record: Any, names: tuple[str, ...]) -> Example:
    return Example(id_of(record, *names), (), "", texts_of(record.get("answers"), "answer"), None, {})
