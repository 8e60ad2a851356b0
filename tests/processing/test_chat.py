"""Chat-style messages become the prompt of the model card; and bad ones give one clear sentence."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from idefics_jax.processing.processor import IdeficsProcessor
from idefics_jax.processing.prompts import Text
from tests.support.tiny_processor import BLUE, RED, assert_same, tiny_processor

CONVERSATION = [
    {"role": "user", "content": [{"type": "text", "text": "What is in this image?"}, {"type": "image", "image": RED}]},
    {"role": "assistant", "content": "This picture depicts Idefix."},
    {"role": "user", "content": [{"type": "image", "image": BLUE}, {"type": "text", "text": "And who is that?"}]},
]


@pytest.fixture
def instruct() -> IdeficsProcessor:
    return tiny_processor()


def test_the_model_cards_conversation(instruct):
    prompt = instruct.apply_chat_template(CONVERSATION, add_generation_prompt=True)
    assert prompt == [
        "User: What is in this image?",
        RED,
        "<end_of_utterance>\nAssistant: This picture depicts Idefix.<end_of_utterance>\nUser:",
        BLUE,
        "And who is that?<end_of_utterance>\nAssistant:",
    ]
    card = ["User: What is in this image?", RED, "<end_of_utterance>"]
    card += ["\nAssistant: This picture depicts Idefix.<end_of_utterance>"]
    card += ["\nUser:", BLUE, "And who is that?<end_of_utterance>", "\nAssistant:"]
    assert_same(instruct(prompt), instruct(card, add_end_of_utterance_token=False))


def test_base_checkpoints_do_without_the_token():
    assert tiny_processor(False).apply_chat_template(CONVERSATION[1:]) == [
        "Assistant: This picture depicts Idefix.\nUser:",
        BLUE,
        "And who is that?",
    ]


def test_contents_are_strings_or_parts(instruct):
    """One text, the same in parts; texts in a row are joined as they are, and end where they end."""
    expected = ["User: Hello there<end_of_utterance>"]
    for content in [
        "Hello there",
        [{"type": "text", "text": "Hello there"}],
        [{"type": "text", "text": "Hello"}, {"type": "text", "text": " there"}],
        ({"type": "text", "text": "Hello there"},),
    ]:
        assert instruct.apply_chat_template([{"role": "user", "content": content}]) == expected


def test_sources_of_images(instruct, tmp_path):
    """Opened images, arrays, paths and URLs, under transformers' and OpenAI's names, all give the same pixels."""
    encoded = io.BytesIO()
    RED.save(encoded, "PNG")
    (tmp_path / "no-extension").write_bytes(encoded.getvalue())
    path = tmp_path / "no-extension"
    url = f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"

    def inputs(part: dict) -> dict:
        return instruct.apply_chat_template([{"role": "user", "content": [part]}], tokenize=True)

    expected = inputs({"type": "image", "image": RED})
    assert expected["pixel_values"].any()
    for part in [
        {"type": "image", "image": np.asarray(Image.new("RGB", (5, 5), "red"))},
        {"type": "image", "image": url},
        {"type": "image", "url": url},
        {"type": "image", "path": str(path)},
        {"type": "image", "path": path},
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "image_url", "image_url": url},
    ]:
        assert_same(inputs(part), expected)


@pytest.mark.parametrize(
    "message",
    [
        {"content": "Who?", "images": [RED]},
        {"content": "Who?", "image": RED},
        {"content": "<image>Who?", "images": [RED]},
        {"content": "Who?", "images": [RED], "image": RED},
        {"content": "Who?", "images": [RED], "id": "7", "name": "Ann", "tool_calls": None, "annotations": []},
        {"content": [{"type": "image"}, {"type": "text", "text": "Who?"}], "images": (RED,)},
        {"content": [{"image": RED}, {"text": "Who?"}]},
        {"content": [{"type": "image", "image": RED, "url": None}, {"type": "text", "text": "Who?"}], "images": []},
        {"content": [{"type": "image", "image": RED}, {"type": "text", "text": "Who?"}], "images": [RED]},
    ],
)
def test_messages_of_other_tools(instruct, message):
    prompt = instruct.apply_chat_template([{"role": "user", **message}])
    assert prompt == ["User:", RED, "Who?<end_of_utterance>"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
        {"type": "image", "base64": "AAAA"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {"type": "image", "source": {"type": "url", "url": "data:image/png;base64,AAAA"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "high"}},
    ],
)
def test_parts_of_other_tools(instruct, part):
    (_, image, _) = instruct.apply_chat_template([{"role": "user", "content": [part]}])
    assert str(image).endswith(";base64,AAAA")


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"content": "Who?", "pictures": ["a.png"]}, "Message 0 has the field 'pictures', which is not read"),
        ({"content": "Who?", "tool_calls": [{"id": 1}]}, "Message 0 has the field 'tool_calls', which is not read"),
        ({"content": "Who?", "weight": 0}, "Message 0 has the field 'weight', which is not read"),
        ({"content": [{"type": "text", "text": "Who?", "image": "a.png"}]}, "has the field 'image', which is not read"),
        ({"content": [{"text": "Who?", "image": "a.png"}]}, "has the field 'text', which is not read"),
        ({"content": [{"type": "image", "image": "a.png", "mask": "b.png"}]}, "has the field 'mask', which is not"),
        ({"content": [{"type": "image", "image": "a.png", "url": "b.png"}]}, "names different images; keep one"),
        ({"content": "Who?", "images": ["a.png"], "image": "b.png"}, 'has "images" and another "image"'),
        ({"content": "<image> <image>", "images": ["a.png"]}, "has 2 <image> marks and 1 images for them"),
        ({"content": [{"type": "image", "image": "a.png"}], "images": ["b.png"]}, "others beside it; name each image"),
        ({"content": "Who?", "images": [3]}, "is neither a text nor an image with"),
        ({"content": "half \ud800"}, "half of a surrogate pair"),
        ({"content": [{"type": ["text"], "text": "Who?"}]}, "is neither a text nor an image with"),
    ],
)
def test_nothing_of_a_message_is_passed_over(instruct, message, error):
    with pytest.raises(ValueError, match=error):
        instruct.apply_chat_template([{"role": "user", **message}])


@pytest.mark.parametrize("role", [["user"], {"user": 1}, None, 3, "tool"])
def test_a_role_that_is_none(instruct, role):
    with pytest.raises(ValueError, match=r"Message 0 has the role .*; IDEFICS knows user and assistant"):
        instruct.apply_chat_template([{"role": role, "content": "Who?"}])


def test_what_users_write_is_text(instruct, tmp_path, monkeypatch):
    """Names of files and URLs in a message are not read."""
    monkeypatch.chdir(tmp_path)
    RED.save("photo.png")
    (prompt,) = instruct.apply_chat_template([[{"role": "user", "content": "photo.png"}]])
    assert prompt == ["User: photo.png<end_of_utterance>"]
    for content in ("photo.png", "http://example.org/a.png"):
        parts = [{"type": "image", "image": RED}, {"type": "text", "text": content}, {"type": "image", "image": RED}]
        messages = [{"role": "user", "content": parts}]
        assert isinstance(instruct.apply_chat_template(messages)[2], Text)
        inputs = instruct.apply_chat_template(messages, tokenize=True)
        assert inputs["pixel_values"].shape[1] == 2
        assert content in instruct.decode(inputs["input_ids"][0])


def test_a_batch_of_conversations(instruct):
    batch = [CONVERSATION, CONVERSATION[:1]]
    prompts = instruct.apply_chat_template(batch, add_generation_prompt=True)
    assert prompts == [instruct.apply_chat_template(one, add_generation_prompt=True) for one in batch]
    arguments = {"padding_side": "right", "pad_to_multiple_of": 16}
    tokenized = instruct.apply_chat_template(batch, add_generation_prompt=True, tokenize=True, **arguments)
    assert_same(tokenized, instruct(prompts, **arguments))


def test_messages_are_not_changed(instruct):
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    instruct.apply_chat_template(messages)
    assert messages == [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "The conversation has no messages."),
        ([[]], "The conversation has no messages."),
        (
            [{"role": "system", "content": "Be kind."}],
            "Message 0 has the role 'system'; IDEFICS knows user and assistant.",
        ),
        ([CONVERSATION[0], "Hello"], "Message 1 is a str; give a mapping with role and content."),
        (["Hello"], "Message 0 is a str; give a mapping with role and content."),
        ([{"content": "Hello"}], "Message 0 has the role None; IDEFICS knows user and assistant."),
        ([*CONVERSATION, {"role": "user"}], "Message 3 has no content."),
        ([{"role": "user", "content": []}], "Message 0 has no content."),
        ([{"role": "user", "content": ""}], "Message 0 has no content."),
        (
            [{"role": "user", "content": ["Hello"]}],
            "Part 0 of message 0 is neither a text nor an image with an 'image',",
        ),
        ([{"role": "user", "content": [{"type": "image"}]}], "Part 0 of message 0 is neither a text nor an image with"),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "Part 0 of message 0 is neither a text nor an image with an",
        ),
        (
            [{"role": "user", "content": [{"type": "image", "image": 3}]}],
            "Part 0 of message 0 is neither a text nor an",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "Part 0 of message 0 is neither a te",
        ),
        ([{"role": "user", "content": 3}], "Message 0 has a int as content; give text or a list of parts."),
    ],
)
def test_messages_that_cannot_be_meant(instruct, messages, message):
    with pytest.raises(ValueError) as caught:
        instruct.apply_chat_template(messages)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_image_mark_in_a_message_needs_its_image(instruct):
    messages = [{"role": "user", "content": "What is <image>?"}]
    with pytest.raises(ValueError, match=r"^Prompt 0 has 1 <image> marks and 0 images; "):
        instruct.apply_chat_template(messages, tokenize=True)


def test_bad_images_are_named(instruct, tmp_path):
    messages = [{"role": "user", "content": [{"type": "image", "path": "missing.jpg"}]}]
    with pytest.raises(FileNotFoundError, match=r"^The image file missing\.jpg does not exist\.$"):
        instruct.apply_chat_template(messages, tokenize=True)
