"""The authors' prompts, letter for letter, and templates of one's own."""

import pytest

from idefics_jax.evaluation.examples import Example
from idefics_jax.evaluation.prompting import Shot, make_prompt, prompt_text
from idefics_jax.evaluation.shots import generator, shown
from idefics_jax.evaluation.templates import (
    CAPTION_STOPS,
    TEMPLATES,
    VQA_STOPS,
    Template,
    make_template,
    own_template,
)
from tests.support.tiny_processor import tiny_processor
from tests.support.tiny_tokenizer import IMAGE_TOKEN_ID

IMG = "<fake_token_around_image><image><fake_token_around_image>"
QUERY = Example(0, ("q.png",), "How many dogs?", (), None, {})
SHOTS = [
    Shot(Example(1, ("a.png",), "What is this?", ("cat",), None, {}), "a cat"),
    Shot(Example(2, ("b.png",), "Is it red?", ("no",), None, {}), "no"),
]


def text(name, form, query=QUERY, shots=SHOTS, text_only=False):
    return prompt_text(TEMPLATES[name][form], query, shots, text_only, "<s>")


def test_vqa():
    assert text("vqa", "base") == (
        "<s>Instruction: provide an answer to the question. Use the image to answer.\n"
        f"Image:{IMG}Question: What is this? Answer: a cat\n"
        f"Image:{IMG}Question: Is it red? Answer: no\n"
        f"Image:{IMG}Question: How many dogs? Answer:"
    )


def test_vqa_without_shots_shows_two_without_their_images():
    assert text("vqa", "base", text_only=True) == (
        "<s>Instruction: provide an answer to the question. Use the image to answer.\n"
        "Image:Question: What is this? Answer: a cat\n"
        "Image:Question: Is it red? Answer: no\n"
        f"Image:{IMG}Question: How many dogs? Answer:"
    )


def test_vqa_of_instruct_checkpoints():
    assert text("vqa", "instruct", shots=SHOTS[:1]) == (
        f"<s>User:{IMG}What is this?\nGive a very brief answer.<end_of_utterance>\n"
        "Assistant: a cat<end_of_utterance>\n"
        f"User:{IMG}How many dogs?\nGive a very brief answer.<end_of_utterance>\nAssistant:"
    )


def test_vizwiz():
    assert text("vizwiz", "base", shots=[]) == (
        "<s>Task: Answer the questions based on the image when possible, otherwise say unanswerable.\n"
        f"Image:{IMG}Question: How many dogs? Answer:"
    )


def test_captions():
    assert text("captions", "base") == (f"<s>Image:{IMG}Caption: a cat\nImage:{IMG}Caption: no\nImage:{IMG}Caption:")
    assert text("captions", "base", text_only=True) == (
        f"<s>Image:Caption: a cat\nImage:Caption: no\nImage:{IMG}Caption:"
    )
    assert text("captions", "instruct", shots=SHOTS[:1]) == (
        f"<s>User:{IMG}Describe the image briefly.<end_of_utterance>\nAssistant: a cat<end_of_utterance>\n"
        f"User:{IMG}Describe the image briefly.<end_of_utterance>\nAssistant:"
    )


def test_classes():
    assert text("photo", "base", shots=SHOTS[:1]) == f"{IMG}a photo of a a cat.{IMG}a photo of a"
    assert text("photo", "instruct", shots=[]) == (
        f"<s>User:{IMG}What is represented in this image?<end_of_utterance>\nAssistant: This is a photo of a"
    )
    assert text("sentiment", "base", shots=SHOTS[1:]) == (
        "<s>Instruction: A movie review is written on an image. Say if it is positive or negative.\n"
        f"Image:{IMG}Sentiment: no.\nImage:{IMG}Sentiment:"
    )


def test_memes():
    meme = QUERY._replace(fields={"text": "oh {no}"})
    announced = (
        "It's a conversation between a human, the user, and an intelligent visual AI, Bot. The user sends memes with "
        "text written on them, and Bot has to say whether the meme is hateful or not."
    )
    asked = 'is an image with written "oh {no}" on it. Is it hateful? Answer:'
    assert text("hateful-memes", "base", meme, [Shot(meme, "yes")]) == f"{announced}{IMG}{asked} yes{IMG}{asked}"


def test_what_follows_the_answer_is_shown_in_shots_alone():
    question = QUERY._replace(fields={"context": "Which? A. x B. y\n", "solution": "It is y."})
    assert text("scienceqa", "base", question, [Shot(question, "B")]) == (
        f"{IMG}Which? A. x B. y\nAnswer: The best answer is B. It is y."
        f"{IMG}Which? A. x B. y\nAnswer: The best answer is"
    )


def test_stop_words_are_the_authors():
    assert VQA_STOPS[:10] == ("Question", "User", "Image", "task", "What", "Who", "When", "Where", "Why", "How")
    assert CAPTION_STOPS[:5] == ("Caption", "Description", "User", "Image", "task")
    assert VQA_STOPS[-1] == CAPTION_STOPS[-1] == "<end_of_utterance>"


def test_several_images_share_the_token_between_them():
    query = QUERY._replace(images=("a.png", "b.png"))
    fake, image = "<fake_token_around_image>", "<image>"
    assert text("captions", "base", query, []) == f"<s>Image:{fake}{image}{fake}{image}{fake}Caption:"
    template = make_template("vqa", "base", "", "<image>or<image>? {answer}", ())
    assert prompt_text(template, query, [], False, "<s>") == f"{IMG}or{IMG}?"
    assert text("captions", "base", QUERY._replace(images=()), []) == "<s>Image:Caption:"


def test_templates_of_ones_own():
    template = make_template("vqa", "base", "{bos}Answer {{briefly}}.", "<image>Q: {question} A: {answer}; ", None)
    assert prompt_text(template, QUERY, SHOTS[:1], False, "<s>") == (
        f"<s>Answer {{briefly}}.{IMG}Q: What is this? A: a cat; {IMG}Q: How many dogs? A:"
    )


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ("<image>{question}", r"must name \{answer\} once"),
        ("{answer}{answer}", r"must name \{answer\} once"),
        ("{answer", "cannot be read"),
    ],
)
def test_templates_that_are_none(example, message):
    with pytest.raises(ValueError, match=message):
        make_template("vqa", "base", None, example, None)


def test_templates_that_do_not_fit():
    template = make_template("vqa", "base", "", "<image>{text} {answer}", None)
    with pytest.raises(ValueError, match="names 'text', which 0 has not"):
        prompt_text(template, QUERY, [], False, "<s>")
    with pytest.raises(ValueError, match="2 <image> marks, and 0 has 1 images"):
        prompt_text(make_template("vqa", "base", "", "<image><image>{answer}", None), QUERY, [], False, "<s>")


def tokens_of(query, shots=(), **changes):
    choices = {"text_only": False, "names": {}, "new_tokens": 15, "limit": 2048, "positions": 2048, **changes}
    return make_prompt(tiny_processor(False).tokenizer, TEMPLATES["vqa"]["base"], query, shots, **choices)


def test_long_prompts_are_cut_at_the_left_with_the_images_that_go():
    whole = tokens_of(QUERY, SHOTS)
    assert (whole.images, whole.truncated, whole.shots) == (("a.png", "b.png", "q.png"), False, (1, 2))
    second = whole.tokens.index(IMAGE_TOKEN_ID, whole.tokens.index(IMAGE_TOKEN_ID) + 1)
    for limit, images in ((len(whole.tokens) - second, 2), (len(whole.tokens) - second - 1, 1)):
        cut = tokens_of(QUERY, SHOTS, limit=limit)
        assert cut == whole._replace(tokens=whole.tokens[-limit:], images=whole.images[-images:], truncated=True)
    assert len(tokens_of(QUERY, SHOTS, positions=40, new_tokens=15).tokens) == 25


def test_an_image_mark_in_a_question_is_told():
    with pytest.raises(ValueError, match="has <image> in its text"):
        tokens_of(QUERY._replace(question="What is <image>?"))


def test_answers_in_shots():
    answers = Example(1, (), "", ("no", "yes", "yes", "no", "maybe"), None, {})
    assert shown(answers, "vqa", generator(0, 1, "")).answer == "no"  # the first of the most frequent
    drawn = {shown(answers, "captions", generator(seed, 1, "")).answer for seed in range(30)}
    assert drawn == {"no", "yes", "maybe"}


OWN = {"prefix": "{bos}", "example": "<image>{answer}", "stop_words": ["x"]}


@pytest.mark.parametrize("config", [{}, {"evaluation_prompts": None}, {"evaluation_prompts": {"photo": OWN}}], ids=str)
def test_a_checkpoint_need_not_name_a_prompt(config):
    assert own_template(config, "vqa") is None


def test_a_checkpoint_s_own_prompt():
    own = own_template({"evaluation_prompts": {"vqa": OWN}}, "vqa")
    assert own == Template("{bos}", "<image>{answer}", ("x",))
    assert make_template("vqa", "instruct", None, "<image> {answer}.", None, own) == own._replace(
        example="<image> {answer}."
    )


@pytest.mark.parametrize(
    "prompts",
    [
        [],
        "vqa",
        {"vqa": None},
        {"vqa": "text"},
        {"vqa": {}},
        {"vqa": OWN | {"stop_words": "x"}},
        {"vqa": OWN | {"a": 1}},
    ],
    ids=str,
)
def test_prompts_of_another_form_are_refused(prompts):
    with pytest.raises(ValueError, match=r"evaluation_prompts in tokenizer_config.json must hold prompts by name"):
        own_template({"evaluation_prompts": prompts}, "vqa")
