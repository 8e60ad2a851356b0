"""A prompt may be given in many forms, which mean the same; and one that cannot be meant gives one clear sentence."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idefics_jax.processing.processor import IdeficsProcessor
from idefics_jax.processing.prompts import Text
from tests.reference.processor import IMAGE_SIZE
from tests.support.tiny_processor import BLUE, GREEN, RED, assert_same, text_of, tiny_processor
from tests.support.tiny_tokenizer import IMAGE_TOKEN_ID

MARK = "<fake_token_around_image><image><fake_token_around_image>"


@pytest.fixture
def processor() -> IdeficsProcessor:
    return tiny_processor()


def test_a_prompt_is_joined_as_the_model_was_trained(processor):
    inputs = processor(["User:", RED, GREEN, "Which? ", "  The first", BLUE, "end"])
    assert text_of(processor, inputs) == (
        "<s>User:<fake_token_around_image><image><fake_token_around_image><image><fake_token_around_image>"
        f"Which?<end_of_utterance>The first{MARK}end"
    )
    assert inputs["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE, 3)
    np.testing.assert_array_equal(inputs["pixel_values"][0], processor.image_processor.preprocess([RED, GREEN, BLUE]))


def test_end_of_utterance_is_put_between_texts_if_the_tokenizer_knows_it(processor):
    prompt = ["one", "two", RED, "three"]
    assert "one<end_of_utterance>" in text_of(processor, processor(prompt))
    assert_same(processor(prompt), processor(prompt, add_end_of_utterance_token=True))
    for inputs in (processor(prompt, add_end_of_utterance_token=False), tiny_processor(False)(prompt)):
        assert text_of(processor, inputs) == f"<s>onetwo{MARK}three"
    with pytest.raises(ValueError, match=r"^The tokenizer has no <end_of_utterance> token; it is the instruct "):
        tiny_processor(False)(prompt, add_end_of_utterance_token=True)


def test_forms_of_one_prompt(processor):
    """Alone or as a batch of one; its images among the texts, or apart from a text that marks their places."""
    expected = processor([["User:", RED, GREEN, "Which?"]])
    for form in [
        processor(["User:", RED, GREEN, "Which?"]),
        processor(("User:", RED, GREEN, "Which?")),
        processor("User: <image><image> Which?", images=[RED, GREEN]),
        processor(["User:<image><image>Which?"], images=[[RED, GREEN]]),
        processor("User:<image> <image>Which?", (RED, GREEN)),
        processor(f"User:{MARK}<image><fake_token_around_image>Which?", images=[RED, GREEN]),
        processor(f"User:{MARK}{MARK}Which?", images=[RED, GREEN]),
    ]:
        assert_same(form, expected)
    assert_same(processor("Hello"), processor([["Hello"]]))


def test_forms_of_a_batch(processor):
    expected = processor([["a", RED, "b"], [GREEN, BLUE, "c"], ["no image"]])
    texts = ["a<image>b", "<image><image>c", "no image"]
    assert_same(processor(texts, images=[RED, [GREEN, BLUE], []]), expected)


def test_images_for_texts_without_marks_go_where_the_reference_puts_them(processor):
    assert_same(processor("What?", images=RED), processor([RED, "What?"]))
    assert_same(processor(["What?"], images=[RED]), processor([RED, "What?"]))
    assert_same(processor(["What?", "Who?"], images=[RED, GREEN]), processor([[RED, "What?"], [GREEN, "Who?"]]))
    assert_same(processor(["What?"], images=[[RED, GREEN]]), processor(["What?", RED, GREEN]))


def test_sources_of_images(processor, tmp_path, monkeypatch):
    """A path, a string that names a file, a `data:` URL and an array give what the opened image gives."""
    monkeypatch.chdir(tmp_path)
    RED.save("red square.png")
    RED.save("no-extension", "PNG")
    encoded = io.BytesIO()
    RED.save(encoded, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"
    expected = processor(["User:", RED, "Which?"])
    array = np.ascontiguousarray(np.asarray(RED.resize((9, 9))))
    for source in ["red square.png", f" {tmp_path}/red square.png", Path("no-extension"), url, array]:
        assert_same(processor(["User:", source, "Which?"]), expected)
        source = source.strip() if isinstance(source, str) else source
        assert_same(processor("User:<image>Which?", images=source), expected)
    assert_same(processor("User:<image>Which?", images="no-extension"), expected)


def test_a_text_is_never_read_as_an_image(processor):
    for text in ("http://example.org/a.png", "photo.png", "data:image/png;base64,AAAA"):
        inputs = processor(["See", Text(text)])
        assert IMAGE_TOKEN_ID not in inputs["input_ids"]
        assert text in text_of(processor, inputs)


def test_a_transform_and_a_size_reach_the_images(processor):
    prompt = ["a", Image.new("RGB", (40, 30)), "b"]
    assert processor(prompt, image_size=5)["pixel_values"].shape == (1, 1, 5, 5, 3)
    crop = processor(["a", *prompt], image_transform=lambda image: np.full((6, 7, 3), image.width))["pixel_values"]
    np.testing.assert_array_equal(crop, np.full((1, 1, 6, 7, 3), 40, np.float32))


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        (None, None, "There is no text: give a prompt, or images together with their text."),
        (None, [RED], "There is no text: give a prompt, or images together with their text."),
        ([], None, "The batch is empty; give at least one prompt."),
        ([], [], "The batch is empty; give at least one prompt."),
        ("", None, "Prompt 0 is empty; give it a text or an image."),
        ([["a"], []], None, "Prompt 1 is empty; give it a text or an image."),
        ([["  ", ""]], None, "Prompt 0 is empty; give it a text or an image."),
        ([["a"], "b"], None, "The batch mixes lists with single items; make each prompt a list, or give one prompt."),
        (["a", 3], None, "A prompt holds a int; give strings, Pillow images, numpy arrays or pathlib.Paths."),
        ([["a", None]], None, "A prompt holds a NoneType; give strings, Pillow images, numpy arrays or pathlib.Paths."),
        ("a<image>b", None, "Prompt 0 has 1 <image> marks and 0 images; put the images where the marks"),
        ([["a"], ["<image>", RED]], None, "Prompt 1 has 2 <image> marks and 1 images; put the images where the marks"),
        ("a<image>b<image>", [RED], "Prompt 0 has 2 <image> marks and 1 images; give one for each."),
        ("a<image>b", [RED, GREEN], "Prompt 0 has 1 <image> marks and 2 images; give one for each."),
        ("a<image>b", [], "Prompt 0 has 1 <image> marks and 0 images; give one for each."),
        (["a", "<image>"], [[RED], []], "Prompt 1 has 1 <image> marks and 0 images; give one for each."),
        ("a", [RED, GREEN], "Prompt 0 has 0 <image> marks and 2 images; mark where each goes."),
        (["a<image>", "b"], [RED], "There are 2 texts and 1 entries in images; give one for each text."),
        ([["a"], ["b"]], [RED, RED], "With images=..., text must be a string or a list of strings."),
        ("a<image>", [3], "A prompt holds a int; give strings, Pillow images, numpy arrays or pathlib.Paths."),
    ],
)
def test_prompts_that_cannot_be_meant(processor, text, images, message):
    with pytest.raises(ValueError) as caught:
        processor(text, images)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
