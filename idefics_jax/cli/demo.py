"""`idefics-jax demo`: a few questions about the pictures that come with the package, answered."""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from idefics_jax.cli.loading import load_model
from idefics_jax.pocket import Question, demo_questions
from idefics_jax.processing.chat import message_parts
from idefics_jax.processing.processor import IdeficsProcessor

MAX_NEW_TOKENS = 24


def run(options: argparse.Namespace) -> int:
    """Prints where the pictures are, what is asked about them, and the answers.

    Raises:
        ValueError, OSError: one sentence on what is wrong with the model.
    """
    processor = IdeficsProcessor.from_pretrained(options.model)
    model = load_model(options.model, options.dtype, options.mesh)
    asked = demo_questions()
    columns = [Column(name, no_wrap=True) for name in ("picture", "question", "answer")]
    table = Table(*columns, box=None, pad_edge=False)
    for one, answer in zip(asked, answers(model, processor, asked), strict=True):
        table.add_row(one.image.name, one.question, answer)
    console = Console(soft_wrap=True, width=200)
    console.print(table, highlight=False)
    console.print(f"\nThe pictures are in {asked[0].image.parent}; ask one yourself:\n", highlight=False)
    console.print(f'  idefics-jax generate --image {asked[0].image} --question "{asked[0].question}"', highlight=False)
    return 0


def answers(model: Any, processor: IdeficsProcessor, asked: Sequence[Question]) -> list[str]:
    """The model's likeliest words about each picture."""
    messages = [[{"role": "user", "content": message_parts(one.question, [one.image])}] for one in asked]
    inputs: Any = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    tokens = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=processor.answer_ends)
    new = np.asarray(tokens)[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
