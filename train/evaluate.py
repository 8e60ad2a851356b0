"""Held-out data: the loss, and greedy answers to look at."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import jax
import numpy as np

from idefics_jax import IdeficsForVisionText2Text, IdeficsProcessor
from idefics_jax.generation_config import DEFAULTS, GenerationConfig
from idefics_jax.nn.loss import IGNORED
from idefics_jax.processing.prompts import IMAGE_TOKEN, Text

from .batches import Layout
from .config import TrainConfig
from .data.examples import Question
from .data.packing import Row
from .data.pipeline import evaluation_rows, questions
from .metrics import Prediction

ANSWERED_TOGETHER = 8
SHOWN = 8


def eval_loss(
    config: TrainConfig,
    processor: IdeficsProcessor,
    layout: Layout,
    sums: Callable[[Any], tuple[jax.Array, jax.Array]],
) -> float:
    """The mean cross-entropy of the held-out rows' tokens, of `config.eval.batches` batches at most.

    Args:
        sums: gives a batch's sum, and how many tokens it is of.
    """
    size = layout.accumulation * layout.rows
    rows = evaluation_rows(config.data, processor, config.eval.batches * size)
    total, count = 0.0, 0
    for number, step in enumerate(_full(rows, size)):
        del number
        loss, tokens = sums(layout.batch(dict(enumerate(step))))
        total, count = total + float(loss), count + int(tokens)
    return total / max(count, 1)


def _full(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Lists of `size` rows; the last is filled up with rows in which nothing counts."""
    while step := list(islice(rows, size)):
        nothing = step[0]._replace(labels=np.full_like(step[0].labels, IGNORED))
        yield step + [nothing] * (size - len(step))


def answers(config: TrainConfig, processor: IdeficsProcessor, model: IdeficsForVisionText2Text) -> list[Prediction]:
    """Answer the first `config.eval.answers` held-out records greedily.

    Of several processes the first one gets the answers, and the others help.
    """
    asked = questions(config.data, processor, config.eval.answers)
    found = [prediction for part in _parts(asked) for prediction in _answer(config, processor, model, part)]
    return found[: len(asked)]


def samples(predictions: list[Prediction], processor: IdeficsProcessor) -> list[Prediction]:
    """Return the first answers with their images, to be looked at."""
    load = processor.image_processor.load
    return [one._replace(images=[np.asarray(load(image)) for image in one.images]) for one in predictions[:SHOWN]]


def _parts(asked: list[Question]) -> Iterable[list[Question]]:
    """Divide the questions into parts of one size, which one program answers; the last is filled up."""
    for start in range(0, len(asked), ANSWERED_TOGETHER):
        part = asked[start : start + ANSWERED_TOGETHER]
        yield part + [part[0]] * (ANSWERED_TOGETHER - len(part)) if start else part


def _answer(
    config: TrainConfig, processor: IdeficsProcessor, model: IdeficsForVisionText2Text, part: list[Question]
) -> Iterator[Prediction]:
    first = jax.process_index() == 0
    nothing: dict[str, Any] = {"input_ids": np.zeros((0, 1), np.int32)}
    inputs = processor([question.prompt for question in part]) if first else nothing
    ends = [processor.tokenizer.eos_token, *([processor.end_of_utterance] if processor.end_of_utterance else [])]
    tokens = model.generate(
        **inputs,
        generation_config=GenerationConfig(**DEFAULTS),
        max_new_tokens=config.eval.max_new_tokens,
        eos_token_id=processor.tokenizer.convert_tokens_to_ids(ends),
    )
    if not first:
        return
    new = np.asarray(tokens)[:, inputs["input_ids"].shape[1] :]
    for question, text in zip(part, processor.batch_decode(new, skip_special_tokens=True), strict=True):
        prompt = "".join(item if isinstance(item, Text) else IMAGE_TOKEN for item in question.prompt)
        yield Prediction(prompt, text.strip(), question.answer, question.images)
