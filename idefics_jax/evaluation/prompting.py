"""A query and its shots as tokens, and a batch of them as the model's inputs."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from idefics_jax.evaluation.examples import Example, Id
from idefics_jax.evaluation.templates import Template, query_parts, said
from idefics_jax.processing.image_processor import IdeficsImageProcessor
from idefics_jax.processing.images import image_source
from idefics_jax.processing.processor import IdeficsProcessor, image_mask
from idefics_jax.processing.prompts import FAKE_TOKEN
from idefics_jax.processing.tokenizer import IdeficsTokenizer


class Shot(NamedTuple):
    """A support example and the answer that the prompt shows to it."""

    example: Example
    answer: str


class Prompt(NamedTuple):
    """What is asked.

    Attributes:
        tokens: up to where the answer begins; at least one.
        images: of the tokens, in order.
        candidates: the tokens of each closed answer, at least one; None where the answer is free.
        shots: ids of the support examples.
        truncated: whether the beginning was cut off.
    """

    tokens: tuple[int, ...]
    images: tuple[str, ...]
    candidates: tuple[tuple[int, ...], ...] | None
    shots: tuple[Id, ...]
    truncated: bool


def prompt_text(template: Template, query: Example, shots: Sequence[Shot], text_only: bool, bos: str) -> str:
    """The text before the answer, without spaces at its end, as the authors build it.

    Args:
        text_only: the shots are shown without their images.

    Raises:
        ValueError: the template does not fit an example.
    """
    parts = [said(template.prefix, query._replace(images=()), "", bos)]
    for shot, answer in shots:
        parts.append(said(template.example, shot._replace(images=()) if text_only else shot, answer, bos))
    parts.append(said(query_parts(template)[0], query, "", bos))
    return "".join(parts).strip()


def make_prompt(
    tokenizer: IdeficsTokenizer,
    template: Template,
    query: Example,
    shots: Sequence[Shot],
    *,
    text_only: bool,
    names: dict[str, str],
    new_tokens: int,
    limit: int,
    positions: int,
) -> Prompt:
    """The prompt's tokens, cut at the left if there are too many.

    Where the answers are closed, the prompt ends where they part: each candidate's text, with what the template has
    after it, is read as a whole, as the authors do, and the tokens that it does not share with the prompt are its own.

    Args:
        names: what the prompt calls a class or candidate, where that is not its own name.
        new_tokens: room for a free answer.
        limit: the most tokens of the prompt.
        positions: the most tokens of prompt and answer.

    Raises:
        ValueError: the template does not fit an example, or a text holds the mark of an image.
    """
    shown = [Shot(shot, names.get(answer, answer)) for shot, answer in shots]
    text = prompt_text(template, query, shown, text_only, tokenizer.bos_token)
    images = tuple(image for shot, _ in shots if not text_only for image in shot.images) + query.images
    candidates = None
    if query.candidates is None:
        tokens = tokenizer.encode(text)
    else:
        # Text after a special token is read as if it stood alone: what is the same for all candidates is read once.
        split = text.rfind(FAKE_TOKEN) + len(FAKE_TOKEN) if FAKE_TOKEN in text else 0
        head, tail = tokenizer.encode(text[:split]), text[split:]
        before = _space_before_answer(template, query, tokenizer.bos_token)
        after = said(query_parts(template)[1], query._replace(images=()), "", tokenizer.bos_token)
        whole = [
            tokenizer.encode(f"{tail}{before}{names.get(candidate, candidate)}{after}".rstrip())
            for candidate in query.candidates
        ]
        shared = tokenizer.encode(tail)
        common = min(min(_common(shared, ids), len(ids) - 1) for ids in whole)
        tokens, candidates = head + shared[:common], tuple(tuple(ids[common:]) for ids in whole)
        new_tokens = max(map(len, candidates))
    kept = tokens[max(0, len(tokens) - max(1, min(limit, positions - new_tokens))) :]
    image_token = tokenizer.convert_tokens_to_ids(["<image>"])[0]
    if tokens.count(image_token) != len(images):
        raise ValueError(f"The prompt of {query.id} or of a shot has <image> in its text, or no place for an image.")
    if not kept:
        raise ValueError(f"The prompt of {query.id} is empty; its template needs a text before the answer.")
    images = images[len(images) - kept.count(image_token) :]
    ids = tuple(shot.id for shot, _ in shots)
    return Prompt(tuple(kept), images, candidates, ids, len(kept) < len(tokens))


def _space_before_answer(template: Template, query: Example, bos: str) -> str:
    """What the prompt's text lost at its end."""
    before = said(query_parts(template)[0], query, "", bos)
    return before[len(before.rstrip()) :]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


class Images(NamedTuple):
    """Images that were read: an array for each path, and what was wrong with some."""

    arrays: dict[str, np.ndarray]
    errors: dict[str, str]


def read_images(processor: IdeficsImageProcessor, paths: Sequence[str]) -> Images:
    """Reads the pixels `[size, size, 3]` float32 of each image once, in threads; one that cannot be read is black."""
    unique = list(dict.fromkeys(paths))

    def read(path: str) -> np.ndarray | str:
        try:
            return processor.preprocess([image_source(path)])[0]
        except (OSError, ValueError) as error:
            return str(error)

    with ThreadPoolExecutor(max(1, min(len(unique), os.cpu_count() or 1))) as pool:
        found = dict(zip(unique, pool.map(read, unique), strict=True))
    black = np.zeros((processor.image_size, processor.image_size, 3), np.float32)
    return Images(
        {path: black if isinstance(x, str) else x for path, x in found.items()},
        {path: x for path, x in found.items() if isinstance(x, str)},
    )


def batch_inputs(
    processor: IdeficsProcessor,
    prompts: Sequence[Prompt],
    images: dict[str, np.ndarray],
    images_are: str = "pixel_values",
) -> dict[str, Any]:
    """The inputs of `model.generate` for prompts: `input_ids` and `attention_mask` `[b, t]`, padded on the left, the
    images `[b, i, ...]` and `image_attention_mask` `[b, t, i]`; without the last two if there are no images.

    Args:
        images: each one's pixels or states, by its path.
        images_are: the argument that takes them.
    """
    tokenizer = processor.tokenizer
    columns = max((len(prompt.tokens) for prompt in prompts), default=1)
    ids = np.full((len(prompts), columns), tokenizer.pad_token_id, np.int32)
    valid = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, columns - len(prompt.tokens) :] = prompt.tokens
        valid[row, columns - len(prompt.tokens) :] = 1
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": valid}
    count = max((len(prompt.images) for prompt in prompts), default=0)
    if not count:
        return inputs
    like = next(iter(images.values()))
    arrays = np.zeros((len(prompts), count, *like.shape), like.dtype)
    for row, prompt in enumerate(prompts):
        for place, path in enumerate(prompt.images):
            arrays[row, place] = images[path]
    mask = image_mask(ids, processor.image_token_id, tokenizer.eos_token_id, count)
    return inputs | {images_are: arrays, "image_attention_mask": mask}
