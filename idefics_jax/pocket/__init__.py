"""The model that comes with the package: a small IDEFICS that knows drawings of common things (`model/README.md`)."""

import json
from pathlib import Path
from typing import NamedTuple

#: Directory of the checkpoint, for `from_pretrained`.
POCKET = str(Path(__file__).parent / "model")
PICTURES = Path(__file__).parent / "pictures"


class Question(NamedTuple):
    """A question about one of the shipped pictures."""

    image: Path
    question: str


def demo_questions() -> list[Question]:
    """What `idefics-jax demo` asks."""
    asked = json.loads((PICTURES / "questions.json").read_text(encoding="utf-8"))
    return [Question(PICTURES / name, question) for name, questions in asked.items() for question in questions]
