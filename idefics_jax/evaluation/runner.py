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
from idefics_jax.evaluation.prompting import Prompt, Shot, batch_inputs, make_prompt, read_images
from idefics_jax.evaluation.protocol import TEXT_ONLY_SHOTS, Protocol
from idefics_jax.evaluation.scoring import log_likelihoods
from idefics_jax.evaluation.store import Answer
from idefics_jax.processor import IdeficsProcessor

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
        inputs: the model's, of the rows of this process.
        errors: what was wrong with a row's images, by its place among `queries`; of this process's rows.
        failed: answers of queries that have no prompt.
    """

    queries: list[Example]
    prompts: list[Prompt]
    inputs: dict[str, Any]
    errors: dict[int, str]
    failed: list[Answer]


def ask(
    model: Any,
    processor: IdeficsProcessor,
    protocol: Protocol,
    queries: Sequence[Example],
    support: Support,
    shots: int,
    done: Iterable[Id],
    query_features: Mapping[Id, Float[np.ndarray, "d"]] | None = None,
) -> Iterator[list[Answer]]:
    """The answers to the queries that are not `done`, a batch at a time.

    Batches are of the same queries whatever is done, so that a run that was stopped goes on to the same answers. Where
    several processes share the model, each calls this with the same arguments and gets all answers.

    Args:
        model: an `IdeficsForVisionText2Text`.
        queries: examples with different ids.
        shots: support examples to show in each prompt.
        query_features: each query's vector, for RICES.
    """
    answered = set(done)
    plan = _planned(model, processor, protocol, queries, support, shots, answered, query_features)
    for batch in _ahead(plan):
        answers = list(batch.failed)
        if batch.queries:
            answers += _answered(model, processor, protocol, batch)
        yield [answer for answer in answers if answer.id not in answered]


def _planned(
    model: Any,
    processor: IdeficsProcessor,
    protocol: Protocol,
    queries: Sequence[Example],
    support: Support,
    shots: int,
    done: set[Id],
    query_features: Mapping[Id, Float[np.ndarray, "d"]] | None,
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
            yield Batch([], [], {}, {}, failed)
        for first in range(0, len(made), size):
            part = made[first : first + size]
            if not all(query.id in done for query, _ in part):
                yield _read(processor, [query for query, _ in part], [prompt for _, prompt in part])


def _shots(
    protocol: Protocol,
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


def _read(processor: IdeficsProcessor, queries: list[Example], prompts: list[Prompt]) -> Batch:
    """The batch with the images of this process's rows."""
    rows = own_rows(len(prompts), jax.process_index())
    own = prompts[rows]
    images = read_images(processor.image_processor, [path for prompt in own for path in prompt.images])
    errors = {
        row: images.errors[path]
        for row, prompt in enumerate(own, rows.start)
        for path in prompt.images
        if path in images.errors
    }
    return Batch(queries, prompts, batch_inputs(processor, own, images.pixels), errors, [])


def own_rows(count: int, process: int) -> slice:
    """The rows of a batch that a process reads and answers."""
    share = -(-count // jax.process_count())
    return slice(min(count, share * process), min(count, share * (process + 1)))


def _answered(model: Any, processor: IdeficsProcessor, protocol: Protocol, batch: Batch) -> list[Answer]:
    closed = batch.queries[0].candidates is not None
    found: list[tuple[str, tuple[float, ...] | None]] = []
    if closed:
        sums = log_likelihoods(model, batch.inputs, batch.prompts)
        for query, prompt, scores in zip(batch.queries, batch.prompts, sums, strict=True):
            assert query.candidates is not None
            assert prompt.candidates is not None
            if protocol.mean:
                scores = scores / [len(tokens) for tokens in prompt.candidates]
            found.append((query.candidates[int(np.argmax(scores))], tuple(map(float, scores))))
    else:
        tokens = _generated(model, processor, protocol, batch)
        found = [(free_answer(processor, row, protocol.template.stop_words), None) for row in tokens]
    unreadable = _unreadable(batch)
    return [
        Answer(query.id, None, None, prompt.shots, prompt.truncated, ("unreadable image", unreadable[row]))
        if row in unreadable
        else Answer(query.id, *found[row], prompt.shots, prompt.truncated, None)
        for row, (query, prompt) in enumerate(zip(batch.queries, batch.prompts, strict=True))
    ]


def _generated(model: Any, processor: IdeficsProcessor, protocol: Protocol, batch: Batch) -> list[np.ndarray]:
    """The new tokens of each row of the batch, those of all processes."""
    rules = {
        "max_new_tokens": protocol.max_new_tokens,
        "num_beams": protocol.num_beams,
        "bad_words_ids": [ids for word in protocol.bad_words if (ids := processor.tokenizer.encode(word))],
    }
    if protocol.num_beams > 1:
        rules |= {"length_penalty": protocol.length_penalty, "early_stopping": protocol.early_stopping}
    tokens = np.asarray(model.generate(**batch.inputs, **rules))[:, batch.inputs["input_ids"].shape[1] :]
    share = own_rows(len(batch.queries), 0).stop
    room = (share - len(tokens), protocol.max_new_tokens - tokens.shape[1])
    tokens = np.pad(tokens, ((0, room[0]), (0, room[1])), constant_values=processor.tokenizer.eos_token_id)
    return list(_everyones(tokens)[: len(batch.queries)])


def _unreadable(batch: Batch) -> dict[int, str]:
    """What was wrong with images, by the row; of other processes' rows, that something was."""
    if jax.process_count() == 1:
        return batch.errors
    flags = np.zeros(len(batch.queries), bool)
    flags[list(batch.errors)] = True
    rows = np.flatnonzero(_everyones(flags[None]).any(axis=0))
    text = "An image of its prompt cannot be read in another process: {}."
    return {int(row): batch.errors.get(int(row), text.format(", ".join(batch.prompts[row].images))) for row in rows}


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
