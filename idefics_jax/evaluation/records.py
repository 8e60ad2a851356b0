"""What is known of one question of an evaluation once it is answered, and the form of `summary.json`.

The summary of a run, which `report.write_report` reads too:

    {"task": "vqa", "model": "...", "command": "idefics-jax eval vqa ...", "settings": {"num_beams": 3, ...},
     "main": "VQA accuracy",
     "results": [{"shots": 4, "count": 1024, "bad": 0, "truncated": 0,
                  "scores": {"VQA accuracy": {"value": 55.4, "low": 52.6, "high": 58.1}, ...}}, ...],
     "problems": {"count": 1, "share": 0.001, "first": ["..."]}}

Scores are percentages, CIDEr-D too, as the published tables have them; `low` and `high` are the ends of the bootstrap
interval. `scores` is empty where there are no references.
"""

from typing import Any, NamedTuple


class Record(NamedTuple):
    """One question, its answer and what it is worth.

    Attributes:
        id: the question's id in its file (a number or a string), or the image's for captions.
        images: paths or URLs of its images, in the order in which the prompt shows them.
        question: what was asked; empty for captions and for classification.
        answer: the model's answer as scored: cut at the first stop word, or the best candidate.
        references: the annotated answers or captions; for closed answers the true candidate alone. Empty where there
            are none (a test split).
        score: from 0 to 1: VQA accuracy, exact match, accuracy, or the caption's CIDEr-D over 10; None without
            references.
        candidates: the closed answers to choose from, or None.
        log_likelihoods: the candidates' scores, in their order, or None.
        shots: ids of the support examples in the prompt, the one nearest to the question last.
    """

    id: int | str
    images: tuple[str, ...]
    question: str
    answer: str
    references: tuple[str, ...]
    score: float | None
    candidates: tuple[str, ...] | None
    log_likelihoods: tuple[float, ...] | None
    shots: tuple[int | str, ...]

    def as_json(self) -> dict[str, Any]:
        """The record as a JSON object, its fields by name."""
        return self._asdict()
