"""Asks the model every question of a file that has no answer yet, in batches of prompts of similar length."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from idefics_jax.evaluation import shots as selection
from idefics_jax.evaluation.examples import Example, Id
from idefics_jax.evaluation.prompting import Images, Prompt, Shot, batch_inputs, make_prompt, read_images
from idefics_jax.evaluation.protocol import TEXT_ONLY_SHOTS, EvalConfig
from idefics_jax.evaluation.scoring import log_likelihoods
from idefics_jax.evaluation.states import ImageFeatureCache
from idefics_jax.evaluation.store import Answer
from idefics_jax.generation_config import DEFAULTS, GenerationConfig
from idefics_jax.processing.processor import IdeficsProcessor

WINDOW = 32  # batches whose prompts are sorted by length together; more take memory, fewer pad more


class Support(NamedTuple):
    """The examples that shots are taken from.

    Attributes:
        examples: in the order of their file.
        places: of the queries that are among them, by id: a query is never its own shot.
        features: each one's vector, for RICES; None where shots are random.
    """

    examples: list[Example]
    places: dict[Id, int]
    features: Float[np.ndarray, "n d"] | None


class Batch(NamedTuple):
    """Queries that are asked together, without those whose prompt cannot be made, which have their answers already.

    Attributes:
        queries, prompts: of all processes.
        pixels: of the images in this process's rows that are not kept.
        failed: answers of queries that have no prompt.
    """

    queries: list[Example]
    prompts: list[Prompt]
    pixels: Images
    failed: list[Answer]


def ask(
    model: Any,
    processor: IdeficsProcessor,
    protocol: EvalConfig,
    queries: Sequence[Example],
    support: Support,
    shots: int,
    done: Iterable[Id],
    query_features: Mapping[Id, Float[np.ndarray, "d"]] | None = None,
    states: ImageFeatureCache | None = None,
) -> Iterator[list[Answer]]:
    """The answers to the queries that are not `done`, a batch at a time.

    Batches are of the same queries whatever is done, so that a run that was stopped goes on to the same answers. Where
    several processes share the model, each calls this with the same arguments and gets all answers.

    Args:
        model: an `IdeficsForVisionText2Text`.
        queries: examples with different ids.
        shots: support examples to show in each prompt.
        query_features: each query's vector, for RICES.
        states: keeps what was read of images; None, as where there are several processes, reads them every time.
    """
    answered = set(done)
    plan = _planned(model, processor, protocol, queries, support, shots, answered, query_features, states)
    for batch in _ahead(plan):
        answers = list(batch.failed)
        if batch.queries:
            answers += _answered(model, processor, protocol, batch, states)
        yield [answer for answer in answers if answer.id not in answered]


def _planned(
    model: Any,
    processor: IdeficsProcessor,
    protocol: EvalConfig,
    queries: Sequence[Example],
    support: Support,
    shots: int,
    done: set[Id],
    query_features: Mapping[Id, Float[np.ndarray, "d"]] | None,
    states: ImageFeatureCache | None,
) -> Iterator[Batch]:
    size = protocol.batch_size
    text_only = shots == 0 and protocol.zero_shot == "text-only"
    for start in range(0, len(queries), WINDOW * size):
        window = queries[start : start + WINDOW * size]
        if all(query.id in done for query in window):
            continue
        made: list[tuple[Example, Prompt]] = []
        failed: list[Answer] = []
        for query in window:
            shown = _shots(protocol, query, support, shots, query_features)
            try:
                prompt = make_prompt(
                    processor.tokenizer,
                    protocol.template,
                    query,
                    shown,
                    text_only=text_only,
                    names=protocol.names,
                    new_tokens=protocol.max_new_tokens,
                    limit=protocol.max_prompt,
                    positions=model.config.max_position_embeddings,
                )
            except ValueError as error:
                ids = tuple(shot.example.id for shot in shown)
                failed.append(Answer(query.id, None, None, ids, False, ("prompt that cannot be made", str(error))))
            else:
                made.append((query, prompt))
        made.sort(key=lambda pair: len(pair[1].tokens))
        if any(answer.id not in done for answer in failed):
            yield Batch([], [], Images({}, {}), failed)
        for first in range(0, len(made), size):
            part = made[first : first + size]
            if not all(query.id in done for query, _ in part):
                prompts = [prompt for _, prompt in part]
                paths = _paths(prompts[own_rows(len(part), jax.process_index())])
                unread = paths if states is None else states.missing(paths)
                yield Batch([query for query, _ in part], prompts, read_images(processor.image_processor, unread), [])


def _shots(
    protocol: EvalConfig,
    query: Example,
    support: Support,
    count: int,
    query_features: Mapping[Id, Float[np.ndarray, "d"]] | None,
) -> list[Shot]:
    """The shots of a query, in the order in which the prompt shows them."""
    left_out, size = support.places.get(query.id), len(support.examples)
    random = selection.generator(protocol.seed, query.id, f"{count} shots")
    if count == 0:
        chosen = selection.first(TEXT_ONLY_SHOTS, size, left_out) if protocol.zero_shot == "text-only" else []
    elif protocol.select == "rices":
        assert support.features is not None
        assert query_features is not None
        chosen = selection.nearest(count, support.features, query_features[query.id], left_out)
    else:
        chosen = selection.at_random(count, size, left_out, random)
    return [selection.shown(support.examples[index], protocol.task, random) for index in chosen]


def _paths(prompts: Sequence[Prompt]) -> list[str]:
    return [path for prompt in prompts for path in prompt.images]


def own_rows(count: int, process: int) -> slice:
    """The rows of a batch that a process reads and answers."""
    share = -(-count // jax.process_count())
    return slice(min(count, share * process), min(count, share * (process + 1)))


def _answered(
    model: Any, processor: IdeficsProcessor, protocol: EvalConfig, batch: Batch, states: ImageFeatureCache | None
) -> list[Answer]:
    rows = own_rows(len(batch.prompts), jax.process_index())
    own = batch.prompts[rows]
    images = batch.pixels if states is None else states.read(_paths(own), batch.pixels)
    images_are = "pixel_values" if states is None else states.images_are
    inputs = batch_inputs(processor, own, images.arrays, images_are)
    found: list[tuple[str, tuple[float, ...] | None]] = []
    if batch.queries[0].candidates is not None:
        sums = log_likelihoods(model, inputs, batch.prompts)
        for query, prompt, scores in zip(batch.queries, batch.prompts, sums, strict=True):
            assert query.candidates is not None
            assert prompt.candidates is not None
            if protocol.mean:
                scores = scores / [len(tokens) for tokens in prompt.candidates]
            # Five places are about what float32 has here, and keep the lines of a thousand classes short.
            found.append((query.candidates[int(np.argmax(scores))], tuple(round(float(x), 5) for x in scores)))
    else:
        tokens = _generated(model, processor, protocol, inputs, len(batch.queries))
        found = [(free_answer(processor, row, protocol.template.stop_words), None) for row in tokens]
    unreadable = _unreadable(batch.prompts, images.errors)
    return [
        Answer(query.id, None, None, prompt.shots, prompt.truncated, ("unreadable image", unreadable[row]))
        if row in unreadable
        else Answer(query.id, *found[row], prompt.shots, prompt.truncated, None)
        for row, (query, prompt) in enumerate(zip(batch.queries, batch.prompts, strict=True))
    ]


def _generated(
    model: Any, processor: IdeficsProcessor, protocol: EvalConfig, inputs: dict[str, Any], count: int
) -> list[np.ndarray]:
    """The new tokens of each of the batch's `count` rows, those of all processes."""
    rules = {
        "generation_config": GenerationConfig(**DEFAULTS),  # the protocol's, whatever the checkpoint's file says
        "max_new_tokens": protocol.max_new_tokens,
        "num_beams": protocol.num_beams,
        "bad_words_ids": [ids for word in protocol.bad_words if (ids := processor.tokenizer.encode(word))],
    }
    if protocol.num_beams > 1:
        rules |= {"length_penalty": protocol.length_penalty, "early_stopping": protocol.early_stopping}
    tokens = np.asarray(model.generate(**inputs, **rules))[:, inputs["input_ids"].shape[1] :]
    share = own_rows(count, 0).stop
    room = (share - len(tokens), protocol.max_new_tokens - tokens.shape[1])
    tokens = np.pad(tokens, ((0, room[0]), (0, room[1])), constant_values=processor.tokenizer.eos_token_id)
    return list(_everyones(tokens)[:count])


def _unreadable(prompts: list[Prompt], errors: dict[str, str]) -> dict[int, str]:
    """What was wrong with images, by the row; of other processes' rows, that something was."""
    bad = {row: [path for path in prompt.images if path in errors] for row, prompt in enumerate(prompts)}
    told = {row: errors[paths[0]] for row, paths in bad.items() if paths}
    if jax.process_count() == 1:
        return told
    rows = np.flatnonzero(_everyones(np.isin(np.arange(len(prompts)), list(told))[None]).any(axis=0))
    text = "An image of its prompt cannot be read in another process: {}."
    return {int(row): told.get(int(row), text.format(", ".join(prompts[row].images))) for row in rows}


def everyone_knows(flags: list[bool]) -> list[bool]:
    """What the first process knows, in each."""
    if jax.process_count() == 1:
        return flags
    return [bool(flag) for flag in multihost_utils.broadcast_one_to_all(np.array(flags, bool))]


def _everyones(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, one after another."""
    if jax.process_count() == 1:
        return array
    return np.concatenate(list(multihost_utils.process_allgather(array)))


def free_answer(processor: IdeficsProcessor, tokens: np.ndarray, stop_words: Sequence[str]) -> str:
    """The text of generated tokens up to the first stop word, without spaces around it.

    Stop words that are special tokens are looked for among the tokens, the others in the text.
    """
    tokenizer = processor.tokenizer
    special = [token for token in stop_words if token == processor.end_of_utterance]
    ends = [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(special)]
    stops = np.flatnonzero(np.isin(tokens, ends))
    text = tokenizer.decode(tokens[: stops[0]] if len(stops) else tokens, skip_special_tokens=True)
    words = [re.escape(word) for word in stop_words if word]
    return (re.split("|".join(words), text)[0] if words else text).strip()


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches; each is made while the one before is answered."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch
