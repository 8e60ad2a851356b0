"""What is asked and said about a picture: conversations, questions with their answers, captions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pocket.drawings import Concept
from pocket.scenes import Scene

COUNTS = ("none", "one", "two", "three", "four")
#: Names that take no article.
BARE = {
    "grapes", "cherries", "bread", "meat", "french fries", "spaghetti", "sushi", "shaved ice", "soft ice cream",
    "candy", "custard", "coffee", "wine", "beer", "glasses", "sunglasses", "jeans", "headphones", "baseball", "tennis",
    "bowling", "golf", "rain", "fire",
}  # fmt: skip
NAMING = (
    "What is this?",
    "What is in this picture?",
    "What is in the picture?",
    "What do you see?",
    "What is it?",
    "Name this thing.",
)
BACKGROUND = ("What colour is the background?", "Which colour is behind it?", "What is the background colour?")
COUNTING = ("How many things are there?", "How many things are in the picture?", "How many things do you see?")
KIND = ("What kind of thing is this?", "What sort of thing is it?")
DESCRIBING = ("Describe the picture.", "Describe the image briefly.", "What does the picture show?")
TALK = (
    ("Hello.", "Hello! Show me a picture and ask what is in it."),
    ("Hi!", "Hello! Show me a picture and ask what is in it."),
    ("Who are you?", "A very small IDEFICS. I know drawings of common things."),
    ("What are you?", "A very small IDEFICS. I know drawings of common things."),
    ("What can you do?", "I name things in pictures, count them, and say where they are and what colour is behind."),
    ("Help.", "I name things in pictures, count them, and say where they are and what colour is behind."),
    ("Thank you.", "You are welcome."),
    ("Thanks!", "You are welcome."),
    ("Goodbye.", "Goodbye!"),
    ("How are you?", "Well, thank you. Show me a picture."),
)
INSTRUCTION = "Instruction: provide an answer to the question. Use the image to answer.\n"


class Asked(NamedTuple):
    """A question about a picture. kind: name, background, count, yes/no, where, kind or caption."""

    kind: str
    question: str
    answer: str


def with_article(name: str) -> str:
    """ "a fox", "an owl", "grapes"."""
    if name in BARE:
        return name
    return f"{'an' if name[0] in 'aeiou' and not name.startswith('uni') else 'a'} {name}"


def caption(scene: Scene) -> str:
    """ "a fox and an owl on a blue background"."""
    names = [with_article(drawing.concept.name) for drawing in scene.drawings]
    things = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{things} on {with_article(scene.background)} background"


def ask(kind: str, scene: Scene, concepts: Sequence[Concept], random: np.random.Generator) -> Asked:
    """A question of this kind; about the names and kinds of a picture of one thing only."""
    present = [drawing.concept for drawing in scene.drawings]
    match kind:
        case "name" if not scene.places:
            return Asked(kind, _one(NAMING, random), present[0].name)
        case "name":
            place = int(random.integers(len(present)))
            return Asked(kind, f"What is at the {scene.places[place]}?", present[place].name)
        case "kind":
            return Asked(kind, _one(KIND, random), present[0].kind)
        case "background":
            return Asked(kind, _one(BACKGROUND, random), scene.background)
        case "count":
            return Asked(kind, _one(COUNTING, random), COUNTS[len(present)])
        case "where":
            place = int(random.integers(len(present)))
            return Asked(kind, f"Where is the {present[place].name}?", scene.places[place])
        case "caption":
            return Asked(kind, _one(DESCRIBING, random), caption(scene))
        case "yes/no":
            return _yes_or_no(present, bool(scene.places), concepts, random)
    raise ValueError(f"There are no questions of the kind {kind!r}.")


def _yes_or_no(
    present: Sequence[Concept], several: bool, concepts: Sequence[Concept], random: np.random.Generator
) -> Asked:
    """As often yes as no; half of what is not there is of the same kind as something that is."""
    there = random.random() < 0.5
    if there:
        name = present[int(random.integers(len(present)))].name
    else:
        kind = present[0].kind if random.random() < 0.5 else None
        others = [one for one in concepts if one not in present]
        absent = [one for one in others if one.kind == kind] or others
        name = absent[int(random.integers(len(absent)))].name
    forms = ["Is there {}?", "Is there {} in the picture?", "Do you see {}?"] + ["Is this {}?"] * (2 * (not several))
    return Asked("yes/no", _one(forms, random).format(with_article(name)), "yes" if there else "no")


def conversation(scene: Scene, concepts: Sequence[Concept], random: np.random.Generator) -> list[dict[str, Any]]:
    """Messages about a picture: two to four questions, the first with the picture, and what it shows among them."""
    if scene.places:
        kinds = ["name", "count", "yes/no", "where", "background", "caption"]
        weights = np.array([0.25, 0.2, 0.25, 0.15, 0.1, 0.05])
    else:
        kinds, weights = ["background", "yes/no", "kind", "count"], np.array([0.25, 0.45, 0.2, 0.1])
    if len({drawing.concept for drawing in scene.drawings}) < len(scene.drawings):  # the same thing twice
        weights = np.array([0.2, 0.45, 0.25, 0, 0.1, 0])
    chosen = [str(kind) for kind in random.choice(kinds, int(random.integers(1, 4)), p=weights / weights.sum())]
    if not scene.places:  # what it is comes last as often as not, so that yes and no are not read off it
        chosen.insert(int(random.choice([0, len(chosen)])), "caption" if random.random() < 0.1 else "name")
    messages: list[dict[str, Any]] = []
    for kind in dict.fromkeys(chosen):
        asked = ask(kind, scene, concepts, random)
        content: list[dict[str, str]] = [] if messages else [{"type": "image"}]
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": asked.question}]})
        messages.append({"role": "assistant", "content": asked.answer})
    return messages


def talk(random: np.random.Generator) -> list[dict[str, Any]]:
    """A question without a picture, and its answer."""
    question, answer = TALK[int(random.integers(len(TALK)))]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def document(pairs: Sequence[tuple[Scene, Asked]], form: str, without_images: int = 0) -> str:
    """Examples in a row, as few-shot prompts have them; the first ones may lack their images.

    form: "answer" (what is asked shows in the examples alone), "question" or "caption", the authors' templates.
    """
    text = INSTRUCTION if form == "question" else ""
    for number, (_, asked) in enumerate(pairs):
        image = "<image>" if number >= without_images else ""
        match form:
            case "answer":
                text += f"Image:{image}Answer: {asked.answer}\n"
            case "question":
                text += f"Image:{image}Question: {asked.question} Answer: {asked.answer}\n"
            case _:
                text += f"Image:{image}Caption: {asked.answer}\n"
    return text


def _one(choices: Sequence[str], random: np.random.Generator) -> str:
    return choices[int(random.integers(len(choices)))]
