"""Records to token ids, which of them are learnt, and images; and to the questions of held-out records."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from idefics_jax.data.fields import ImageSource, check_unread_images
from idefics_jax.data.forms import columns_read, document_of, messages_of, prompt_of
from idefics_jax.processing.chat import chat_prompt
from idefics_jax.processing.processor import IdeficsProcessor
from idefics_jax.processing.prompts import Prompt, Text, join
from idefics_jax.utils.paths import AnyPath

from ..config import DataConfig

ASSISTANT = "assistant"


class Example(NamedTuple):
    """A document: its `ids` from BOS to EOS, for each whether it is `learnt`, and the image for each `<image>`."""

    ids: list[int]
    learnt: list[bool]
    images: list[ImageSource]


class Question(NamedTuple):
    """A held-out record: `prompt`, as the processor takes it, the true `answer`, and the images in the prompt."""

    prompt: Prompt
    answer: str
    images: list[ImageSource]


def example_of(record: Mapping[str, Any], folder: AnyPath, processor: IdeficsProcessor, config: DataConfig) -> Example:
    """The document in a record, whose relative image paths start from `folder`.

    Raises:
        ValueError: a record of no known form, text that holds image tokens, too many tokens or images, or nothing to
            learn.
    """
    tokenizer = processor.tokenizer
    eou, eos = processor.end_of_utterance, tokenizer.eos_token
    messages = messages_of(record, folder, config.template)
    if messages is None:
        document = document_of(record, folder, config.template)
        prompt = prompt_of(document.given + document.asked, document.images)
        if not any(isinstance(item, Text) for item in prompt):
            raise ValueError("it has no text")
    else:
        prompt = chat_prompt(messages, eou, False)
    text, images = _joined(prompt, processor)
    if not images:
        check_unread_images(record, columns_read(record, config.template), folder)
    spans = [(0, len(text + eos))]
    if messages is not None and config.loss_on == "answers":
        # A conversation's first turns are a prefix of its text, so its spans are found by their lengths.
        spans = [
            (len(_joined(before, processor)[0]), len(_joined(chat_prompt(messages[: n + 1], eou, False), processor)[0]))
            for n, before in _answered(messages, eou)
        ]
        if spans and not eou and messages[-1]["role"] == ASSISTANT:
            spans[-1] = (spans[-1][0], len(text + eos))  # then EOS is what ends the answer
    text.encode()  # of half a surrogate pair, which JSON can hold: a ValueError here, a TypeError in `tokenizers`
    encoding = tokenizer.tokenizer.encode(text + eos, add_special_tokens=False)
    ids = encoding.ids
    if len(ids) > config.tokens:
        raise ValueError(f"too long: {len(ids)} tokens, --data.sequence-length is {config.tokens}")
    if len(images) > config.max_images:
        raise ValueError(f"too many images: {len(images)}, --data.max-images is {config.max_images}")
    if ids.count(processor.image_token_id) != len(images):
        raise ValueError(f"its text has image tokens of its own ({len(images)} images); take them out")
    skipped = set() if config.loss_on_image_tokens else {processor.image_token_id, processor.fake_token_id}
    learnt = [
        id not in skipped and any(start <= place < end for start, end in spans)
        for id, (place, _) in zip(ids, encoding.offsets, strict=True)
    ]
    if not any(learnt):
        raise ValueError("it has nothing to learn: no answer of the assistant, with --data.loss-on answers")
    return Example(ids, learnt, images)


def question_of(
    record: Mapping[str, Any], folder: AnyPath, processor: IdeficsProcessor, config: DataConfig
) -> Question:
    """What comes before the answer in a record, and the answer: `processor(prompt)` is a prefix of what is trained on.

    The answer is the last message of the assistant; or the text after the last image; or, with a template, what comes
    from its `{answer}` or `{answers[0]}` on, if it has that, or from its first field on.

    Raises:
        ValueError: a record of no known form, or one without an answer.
    """
    messages = messages_of(record, folder, config.template)
    if messages is None:
        given, answer, images = document_of(record, folder, config.template)
        prompt = prompt_of(given, images)
    else:
        turns = _answered(messages, processor.end_of_utterance)
        if not turns:
            raise ValueError("it has no answer: no message is the assistant's")
        number, prompt = turns[-1]
        answer = " ".join(part["text"] for part in messages[number]["content"] if part["type"] == "text")
    if not prompt or not answer.strip():
        raise ValueError("it has no text to answer with, or nothing before it")
    return Question(prompt, answer.strip(), _joined(prompt, processor)[1])


def _answered(messages: list[dict[str, Any]], end_of_utterance: str) -> list[tuple[int, Prompt]]:
    """The number of each message of the assistant, and the prompt that it answers, up to `Assistant:`."""
    return [
        (number, chat_prompt(messages[:number], end_of_utterance, True) if number else [Text("Assistant:")])
        for number, message in enumerate(messages)
        if message.get("role") == ASSISTANT
    ]


def _joined(prompt: Prompt, processor: IdeficsProcessor) -> tuple[str, list[ImageSource]]:
    """The text and images as the processor joins them: strings lose the spaces at their ends."""
    stripped = [Text(item.strip(" ")) if isinstance(item, Text) else item for item in prompt]
    text, images = join(stripped, processor.tokenizer.bos_token, "")
    return text, cast("list[ImageSource]", images)  # records hold no others
