"""The prompts of IDEFICS's authors, and templates given by a user.

A template is a prefix, said once, and an example, repeated for each shot and for the query. `{bos}` is the token that
begins a text, `<image>` stands where the images go, and the other names in braces are what an example has:
`{question}`, `{answer}`, and whatever else its record holds. The strings below are the authors' own (see
docs/evaluation.md), since a score is only comparable under the same prompt.
"""

import string
from itertools import pairwise
from typing import Any, NamedTuple

from idefics_jax.evaluation.examples import Example
from idefics_jax.processing.prompts import END_OF_UTTERANCE, FAKE_TOKEN, IMAGE_MARK, IMAGE_TOKEN

ANSWER = "answer"


class Template(NamedTuple):
    """A prompt's parts, and where an answer to it is cut.

    Attributes:
        prefix: what the prompt begins with.
        example: what each shot is, and the query up to its answer.
        stop_words: an answer ends before the first of them.
    """

    prefix: str
    example: str
    stop_words: tuple[str, ...]


VQA_STOPS = ("Question", "User", "Image", "task", "What", "Who", "When", "Where", "Why", "How", END_OF_UTTERANCE)
CAPTION_STOPS = ("Caption", "Description", "User", "Image", "task", END_OF_UTTERANCE)

#: Name -> form -> template. Where the authors published no instruct form, the base one serves both.
TEMPLATES = {
    "vqa": {
        "base": Template(
            "{bos}Instruction: provide an answer to the question. Use the image to answer.\n",
            "Image:<image>Question: {question} Answer: {answer}\n",
            VQA_STOPS,
        ),
        "instruct": Template(
            "{bos}",
            "User:<image>{question}\nGive a very brief answer.<end_of_utterance>\n"
            "Assistant: {answer}<end_of_utterance>\n",
            VQA_STOPS,
        ),
    },
    "vizwiz": {
        "base": Template(
            "{bos}Task: Answer the questions based on the image when possible, otherwise say unanswerable.\n",
            "Image:<image>Question: {question} Answer: {answer}\n",
            VQA_STOPS,
        ),
    },
    "captions": {
        "base": Template("{bos}", "Image:<image>Caption: {answer}\n", CAPTION_STOPS),
        "instruct": Template(
            "{bos}",
            "User:<image>Describe the image briefly.<end_of_utterance>\nAssistant: {answer}<end_of_utterance>\n",
            CAPTION_STOPS,
        ),
    },
    "photo": {
        "base": Template("", "<image>a photo of a {answer}.", ()),
        "instruct": Template(
            "{bos}",
            "User:<image>What is represented in this image?<end_of_utterance>\n"
            "Assistant: This is a photo of a {answer}.<end_of_utterance>\n",
            (),
        ),
    },
    "sentiment": {
        "base": Template(
            "{bos}Instruction: A movie review is written on an image. Say if it is positive or negative.\n",
            "Image:<image>Sentiment: {answer}.\n",
            (),
        ),
    },
    "hateful-memes": {
        "base": Template(
            "It's a conversation between a human, the user, and an intelligent visual AI, Bot. The user sends memes "
            "with text written on them, and Bot has to say whether the meme is hateful or not.",
            '<image>is an image with written "{text}" on it. Is it hateful? Answer: {answer}',
            (),
        ),
        "instruct": Template(
            "{bos}The user sends memes with text written on them, and the assistant has to say whether the meme is "
            "hateful or not.\n",
            'User:<image>is an image with written "{text}" on it. Is it hateful?<end_of_utterance>\n'
            "Assistant: {answer}.<end_of_utterance>\n",
            (),
        ),
    },
    "scienceqa": {
        "base": Template("", "<image>{context}Answer: The best answer is {answer}. {solution}", ()),
        "instruct": Template(
            "{bos}The user asks a multiple-choice question and the assistant uses the image to answer.\n",
            "User:<image>{context}<end_of_utterance>\n"
            "Assistant: The best answer is {answer}. {solution}<end_of_utterance>\n",
            (),
        ),
    },
}
TEMPLATES["vizwiz"]["instruct"] = TEMPLATES["vqa"]["instruct"]
DEFAULTS = {"vqa": "vqa", "captions": "captions", "classification": "photo", "jsonl": "vqa"}


#: Field of a checkpoint's `tokenizer_config.json` with the templates that it was trained on, by the names above.
OWN_TEMPLATES = "evaluation_prompts"


def own_template(tokenizer_config: dict[str, Any], name: str) -> Template | None:
    """The template of this name that a checkpoint names as its own; None where it names none.

    Raises:
        ValueError: the field is not of the form that docs/evaluation.md describes.
    """
    own = tokenizer_config.get(OWN_TEMPLATES)
    if own is None or (isinstance(own, dict) and name not in own):
        return None
    found = own[name] if isinstance(own, dict) else None
    if isinstance(found, dict) and set(found) == set(Template._fields):
        prefix, example, stop_words = (found[field] for field in Template._fields)
        if isinstance(stop_words, list) and all(isinstance(text, str) for text in (prefix, example, *stop_words)):
            return Template(prefix, example, tuple(stop_words))
    raise ValueError(
        f"{OWN_TEMPLATES} in tokenizer_config.json must hold prompts by name, each with the texts prefix and example "
        f"and the list stop_words; {name} is {found!r}."
    )


def make_template(
    name: str,
    form: str,
    prefix: str | None,
    example: str | None,
    stop_words: tuple[str, ...] | None,
    own: Template | None = None,
) -> Template:
    """The template of this name and form, with the parts that are given instead of its own.

    Args:
        own: the checkpoint's, which is taken instead.

    Raises:
        ValueError: the example is not a format string, or has no `{answer}` or more than one.
    """
    forms = TEMPLATES[name]
    template = own or forms.get(form, forms["base"])
    given = {"prefix": prefix, "example": example, "stop_words": stop_words}
    template = template._replace(**{part: value for part, value in given.items() if value is not None})
    for part in (template.prefix, template.example):
        try:
            names_in(part)
        except ValueError as error:
            raise ValueError(f"The template {part!r} cannot be read: {error}; write braces of text twice.") from error
    if names_in(template.example).count(ANSWER) != 1:
        raise ValueError(f"The template {template.example!r} must name {{answer}} once.")
    return template


def names_in(template: str) -> list[str]:
    """The names in braces, in order."""
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def said(template: str, example: Example, answer: str, bos: str) -> str:
    """A part of a template with an example's values in it; each image as the tokenizer reads it.

    The one `<image>` stands for all images of the example, however many; or there are as many as images.

    Raises:
        ValueError: the template names something that the example has not, or its marks are not the images' number.
    """
    marks, count = len(IMAGE_MARK.findall(template)), len(example.images)
    if marks == 1 or not count:
        template = IMAGE_MARK.sub(IMAGE_TOKEN * count, template)
    elif marks not in (0, count):
        raise ValueError(f"The template has {marks} {IMAGE_TOKEN} marks, and {example.id} has {count} images.")
    values = {**example.fields, "bos": bos, "question": example.question, ANSWER: answer}
    try:
        # Marks are set after the values are in, so that none is made by them.
        pieces = [piece.format_map(values) for piece in template.split(IMAGE_TOKEN)]
    except (KeyError, IndexError) as error:
        raise ValueError(f"The template names {error}, which {example.id} has not.") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"The template {template!r} cannot be filled for {example.id}: {error}.") from error
    return _marked(pieces)


def _marked(pieces: list[str]) -> str:
    """The pieces with an image between each two; images in a row share the fake token between them."""
    text = pieces[0]
    for before, piece in pairwise(pieces):
        shares = not before and text.endswith(IMAGE_TOKEN + FAKE_TOKEN)
        text += ("" if shares else FAKE_TOKEN) + IMAGE_TOKEN + FAKE_TOKEN + piece
    return text


def query_parts(template: Template) -> tuple[str, str]:
    """The example before its answer, and after it with nothing of what only a shot may show."""
    before, after, found = "", "", False
    for literal, name, spec, conversion in string.Formatter().parse(template.example):
        text = literal.replace("{", "{{").replace("}", "}}")
        if found:
            after += text  # a field after the answer would tell it
            continue
        before += text
        found = name == ANSWER
        if name is not None and not found:
            before += f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
    return before, after
