"""Records of every form to documents, what of them is learnt, and questions."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from idefics_jax.processing.prompts import Text
from tests.support.tiny_processor import RED, tiny_processor
from train.config import DataConfig
from train.data.examples import Example, example_of, question_of

FOLDER = Path("/data")
IMAGE = "<fake_token_around_image><image><fake_token_around_image>"
MESSAGES = [
    {"role": "user", "content": [{"type": "image", "path": "a.jpg"}, {"type": "text", "text": "Who is that?"}]},
    {"role": "assistant", "content": "A cat, é猫."},
    {"role": "user", "content": "And where?"},
    {"role": "assistant", "content": [{"type": "text", "text": "There  "}, {"type": "image", "image": "b.png"}]},
    {"role": "user", "content": "Why?"},
]


def example(record: dict[str, Any], end_of_utterance: bool = True, **settings: Any) -> Example:
    return example_of(record, FOLDER, tiny_processor(end_of_utterance), DataConfig(**settings))


def text_of(ids: list[int], end_of_utterance: bool = True) -> str:
    """As written: without the space that stands before each stretch of text ("legacy")."""
    return tiny_processor(end_of_utterance).decode(ids).replace("> ", ">")


def learnt_text(made: Example, end_of_utterance: bool = True) -> str:
    """The learnt stretches with a bar between them."""
    stretches: list[list[int]] = []
    before = False
    for id, learnt in zip(made.ids, made.learnt, strict=True):
        if learnt:
            stretches = [*stretches, []] if not before else stretches
            stretches[-1].append(id)
        before = learnt
    return "|".join(text_of(ids, end_of_utterance).strip() for ids in stretches)


@pytest.mark.parametrize(
    ("record", "template", "text", "images"),
    [
        ({"file_name": "a.jpg", "text": " A cat.\n"}, None, f"{IMAGE}A cat.", ["/data/a.jpg"]),
        ({"text": "A cat."}, None, "A cat.", []),
        (
            {"text": "See <image> and <image><image> here.", "images": ["a", "/b", "http://c/d.jpg"]},
            None,
            f"See{IMAGE}and{IMAGE}<image><fake_token_around_image>here.",
            ["/data/a", "/b", "http://c/d.jpg"],
        ),
        (
            {"file_names": ["a", "b"], "text": "Two."},
            None,
            f"{IMAGE}<image><fake_token_around_image>Two.",
            ["/data/a", "/data/b"],
        ),
        ({"content": ["One", "two", {"image": "a"}, "three."]}, None, f"One two{IMAGE}three.", ["/data/a"]),
        (
            {"image": "a", "name": "Tom", "age": 3, "text": "?"},
            "Who? <image>This is {name}, {age}.",
            f"Who?{IMAGE}This is Tom, 3.",
            ["/data/a"],
        ),
        ({"image": "a", "name": "Tom"}, "{name}", f"{IMAGE}Tom", ["/data/a"]),
    ],
)
def test_documents(record: dict[str, Any], template: str | None, text: str, images: list[str]):
    made = example(record, template=template)
    assert text_of(made.ids) == f"<s>{text}</s>"
    assert [str(image) for image in made.images] == images
    assert made.learnt == [True] * len(made.ids)


@pytest.mark.parametrize("end_of_utterance", [True, False])
def test_a_question_and_its_answer_are_a_conversation(end_of_utterance: bool):
    eou = "<end_of_utterance>" if end_of_utterance else ""
    for answer in ("2", 2):
        made = example({"image": "a.jpg", "question": "How many?", "answer": answer}, end_of_utterance)
        expected = f"<s>User:{IMAGE}How many?{eou}\nAssistant: 2{eou}</s>"
        assert text_of(made.ids, end_of_utterance) == expected
    learnt = example({"image": "a.jpg", "question": "How many?", "answer": "2"}, end_of_utterance, loss_on="answers")
    assert learnt_text(learnt, end_of_utterance) == "2" + (eou or "</s>")


def test_conversations():
    made = example({"messages": MESSAGES})
    eou = "<end_of_utterance>"
    assert text_of(made.ids) == (
        f"<s>User:{IMAGE}Who is that?{eou}\nAssistant: A cat, é猫.{eou}\nUser: And where?{eou}\n"
        f"Assistant: There{IMAGE}{eou}\nUser: Why?{eou}</s>"
    )
    assert [str(image) for image in made.images] == ["/data/a.jpg", "/data/b.png"]
    assert all(made.learnt)


def test_only_answers_are_learnt():
    record = {"messages": MESSAGES}
    answers = example(record, loss_on="answers")
    assert learnt_text(answers) == f"A cat, é猫.<end_of_utterance>|There{IMAGE}<end_of_utterance>"
    base = example(record, False, loss_on="answers")
    assert learnt_text(base, False) == f"A cat, é猫.|There{IMAGE}"
    first = example({"messages": MESSAGES[1:3]}, loss_on="answers")
    assert learnt_text(first) == "A cat, é猫.<end_of_utterance>"


def test_image_tokens_need_not_be_learnt():
    made = example({"messages": MESSAGES}, loss_on="answers", loss_on_image_tokens=False)
    assert learnt_text(made) == "A cat, é猫.<end_of_utterance>|There|<end_of_utterance>"
    caption = example({"image": "a", "text": "A cat."}, loss_on_image_tokens=False)
    assert learnt_text(caption) == "<s>|A cat.</s>"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "<image>\nWho? <image>"}, {"role": "assistant", "content": "Tom."}],
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}, {"type": "image"}]},
            {"role": "assistant", "content": "Tom."},
        ],
    ],
)
def test_images_beside_the_messages(messages: list[dict[str, Any]]):
    made = example({"messages": messages, "images": ["a", "b"]})
    eou = "<end_of_utterance>"
    assert text_of(made.ids) == f"<s>User:{IMAGE}Who?{IMAGE}{eou}\nAssistant: Tom.{eou}</s>"
    with pytest.raises(ValueError, match=r"it has 2 <image> marks and 1 images for them"):
        example({"messages": messages, "images": ["a"]})
    with pytest.raises(ValueError, match="it has 2 <image> marks and 3 images for them"):
        example({"messages": messages, "images": ["a", "b", "c"]})


@pytest.mark.parametrize(
    ("record", "settings", "message"),
    [
        ({"text": "A <image> b"}, {}, "it has 1 <image> marks and 0 images"),
        ({"text": "<image> A <image> b", "image": "a"}, {}, "it has 2 <image> marks and 1 images"),
        ({"text": "A <fake_token_around_image> b"}, {}, "holds a literal <fake_token_around_image>; take it out"),
        ({"content": ["A <image>", {"image": "a"}]}, {}, "holds a literal image token"),
        ({"question": "<image>?", "answer": "1"}, {}, "it has 1 <image> marks and 0 images for them"),
        ({"question": "?", "answer": "<fake_token_around_image>"}, {}, "holds a literal <fake"),
        ({"image": "a", "name": "<image>"}, {"template": "<image>{name}"}, "one of its fields holds a literal image"),
        ({"image": "a", "name": None}, {"template": "<image>{name}"}, "cannot be filled from its fields image: 'name'"),
        ({"image": "a", "name": "b"}, {"template": "{name"}, "--data.template is not a template"),
        ({"image": "a", "name": "b"}, {"template": "name"}, "--data.template has no field such as"),
        ({"file_name": "a.jpg"}, {}, 'it has the fields file_name; a record has "messages"'),
        ({"text": ["A"]}, {}, 'its "text" is a list, not a text'),
        ({"content": [" ", {"image": "a"}]}, {}, "it has no text"),
        ({"text": "half \ud800 of a pair"}, {}, "half of a surrogate pair"),
        ({"text": " "}, {}, 'its "text" is empty, not a text'),
        ({"text": "A", "image": 3}, {}, "one of its images is a int, not a path or URL"),
        ({"messages": "A"}, {}, 'its "messages" are not a list'),
        ({"messages": []}, {}, "The conversation has no messages"),
        ({"messages": [{"role": "system", "content": "A"}]}, {}, "has the role 'system'"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, {}, "neither a text nor an image"),
        ({"messages": MESSAGES[:1]}, {"loss_on": "answers"}, "nothing to learn"),
        ({"text": "A cat is there."}, {"sequence_length": 3}, r"too long: \d+ tokens, --data.sequence-length is 3"),
        ({"text": "A", "images": ["a", "b"]}, {"max_images": 1}, "too many images: 2, --data.max-images is 1"),
    ],
)
def test_bad_records(record: dict[str, Any], settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        example(record, **settings)


ASKED = f"User:{IMAGE}Who?<end_of_utterance>\nAssistant:"
TWO = f"x{IMAGE}<image><fake_token_around_image>"
VQA = {"image": "a", "question": "Who?", "answer": "Tom"}


@pytest.mark.parametrize(
    ("record", "template", "text", "answer"),
    [
        ({"messages": MESSAGES[:3]}, None, f"User:{IMAGE}Who is that?<end_of_utterance>\nAssistant:", "A cat, é猫."),
        (VQA, None, ASKED, "Tom"),
        ({"image": "a", "text": "A cat."}, None, IMAGE, "A cat."),
        ({"images": ["a", "b"], "text": "x <image> <image> A cat."}, None, TWO, "A cat."),
        ({"image": "a", "name": "Tom"}, "<image>This is {name}.", f"{IMAGE}This is", "Tom."),
        (VQA, "<image>Question: {question} Answer: {answer}", f"{IMAGE}Question: Who? Answer:", "Tom"),
    ],
)
def test_questions_are_prefixes_of_documents(record: dict[str, Any], template: str | None, text: str, answer: str):
    config = DataConfig(template=template)
    processor = tiny_processor()
    question = question_of(record, FOLDER, processor, config)
    assert question.answer == answer
    assert len(question.images) == sum(not isinstance(item, Text) for item in question.prompt)
    whole = example_of(record, FOLDER, processor, config).ids
    prefix = processor.tokenizer.encode("<s>" + text)
    assert whole[: len(prefix)] == prefix
    assert text_of(prefix) == "<s>" + text


def test_the_processor_takes_a_questions_prompt(tmp_path: Path):
    RED.save(tmp_path / "a.jpg")
    processor = tiny_processor()
    record = {"image": "a.jpg", "question": "Who?", "answer": "Tom"}
    question = question_of(record, tmp_path, processor, DataConfig())
    ids = processor([question.prompt])["input_ids"][0].tolist()
    assert example_of(record, tmp_path, processor, DataConfig()).ids[: len(ids)] == ids


@pytest.mark.parametrize(
    "record", [{"messages": MESSAGES[:1]}, {"text": "A cat."}, {"image": "a", "text": "b <image>"}]
)
def test_records_without_a_question(record: dict[str, Any]):
    with pytest.raises(ValueError, match="it has no"):
        question_of(record, FOLDER, tiny_processor(), DataConfig())


def test_whatever_a_record_holds_it_is_used_or_bad():
    """Any JSON value anywhere in a record is a ValueError at most: a run must not end for it."""
    records = [
        {"messages": [*MESSAGES, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "c"}}]}]},
        {"file_names": ["a"], "text": "<image>A"},
        {"content": ["A", {"image": "a"}]},
        {"question": "A", "answer": "B", "images": ["a"]},
    ]

    def variants(value: Any) -> Iterator[Any]:
        yield from (None, 1, 2.5, True, "", "<image>", "{", [], {}, [[]], [None], ["A"], {"a": 1}, {"text": 1})
        if isinstance(value, dict):
            for name in value:
                yield from (value | {name: other} for other in variants(value[name]))
        elif isinstance(value, list):
            for place in range(len(value)):
                yield from ([*value[:place], other, *value[place + 1 :]] for other in variants(value[place]))

    used = 0
    for record in records:
        for variant in variants(record):
            if isinstance(variant, dict):
                for template in (None, "{text} <image>"):
                    for function in (example_of, question_of):
                        with suppress(ValueError):
                            function(variant, FOLDER, tiny_processor(), DataConfig(template=template))
                            used += 1
    assert used > 100
