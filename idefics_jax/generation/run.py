"""Drives the compiled programs: read the prompts, then decode, stream or search. The only host code in between."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from idefics_jax.generation.beam import BeamRules, beam_search, make_beam_state
from idefics_jax.generation.context import ConversationCache, PrefillInputs
from idefics_jax.generation.decode import decode, make_state, start
from idefics_jax.generation.hosts import fetch, place
from idefics_jax.generation.prefill import expand, image_states, prefill
from idefics_jax.generation.prompts import Prompts
from idefics_jax.generation.sampling import History, Sampling, make_history
from idefics_jax.generation.stopping import state_after
from idefics_jax.nn.cache import Cache


def prefill_prompts(
    model: Any, prompts: Prompts, reading: PrefillInputs, context: ConversationCache | None, interpolate: bool
) -> tuple[Float[Array, "b v"], Cache]:
    """Reads the prompts; returns the scores of each row's next token, and the cache."""
    states = None
    if context is None or prompts.images is not None:
        rows = len(reading.tokens)
        states = image_states(model, prompts, rows, reading.new_image_slots, interpolate)
    if context is not None and states is not None and states.shape[1] != context.patches:
        raise ValueError(
            f"The new images give {states.shape[1]} vectors each, and those of the cache {context.patches}; "
            "make them the same size."
        )
    return prefill(
        model,
        None if context is None else context.cache,
        states,
        np.int32(reading.used_images),
        np.int32(reading.images - reading.used_images),
        *jax.tree.map(place, (reading.tokens, reading.embeds, reading.embedded, reading.valid, reading.image_mask)),
        slots=reading.slots,
    )


def answer(
    model: Any,
    logits: Float[Array, "b v"],
    cache: Cache,
    reading: PrefillInputs,
    copies: int,
    sampling: Sampling,
    limit: int,
    do_sample: bool,
    streamer: Any,
) -> tuple[np.ndarray, ConversationCache]:
    """Greedy decoding or sampling, `copies` answers to each prompt: `[prompts * copies, new tokens]`, and the context.

    The answers are those to this process's own prompts; the context is of all.

    Raises:
        ValueError: the model gave NaN.
    """
    real = len(reading.conversations) * copies
    own = slice(reading.own.start * copies, reading.own.stop * copies)
    state = make_state(*rows_of(reading, copies, sampling), real, reading.room, int(sampling.pad))
    state = jax.tree.map(place, state)
    cache = cache if copies == 1 else expand(cache, copies)
    state = start(state, logits, sampling, do_sample=do_sample)
    if streamer is None:
        if limit > 1:  # one token needs no loop, nor its compilation
            cache, state = decode(model, cache, state, sampling, limit, do_sample=do_sample)
    else:
        for step in range(2, limit + 2):
            token, done = fetch((state.token, state.done))
            streamer.put(token[own])
            if step > limit or done.all():
                break
            cache, state = decode(model, cache, state, sampling, step, do_sample=do_sample)
        streamer.end()
    answers, steps, counts, token, live, broken = fetch(
        (state.answer, state.step, state.count, state.token, state.live, state.broken)
    )
    _check_finite(broken[:real], copies)
    answers, counts = answers[:real, :steps], counts[:real]
    said = [row for row in reading.conversations for _ in range(copies)]
    context = ConversationCache(
        cache=cache,
        length=reading.length + int(steps) - 1,
        images=reading.images,
        conversations=tuple(
            np.concatenate([row, new[:count]]) for row, new, count in zip(said, answers, counts, strict=True)
        ),
        token_counts=np.repeat(reading.token_counts, copies) + counts,
        pending=np.where(live, token, -1)[:real],
        image_mask=np.repeat(reading.image_mask[:, -1], copies, axis=0)[:real],
        own=own,
    )
    return answers[own, : counts[own].max(initial=0)], context


def search(
    model: Any,
    logits: Float[Array, "b v"],
    cache: Cache,
    reading: PrefillInputs,
    beams: int,
    best: int,
    sampling: Sampling,
    rules: BeamRules,
    limit: int,
    fill: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Beam search: the `best` answers to each prompt, `[prompts * best, new tokens]`, and their scores.

    The prompts are this process's own. After their ends answers have `fill`.

    Raises:
        ValueError: the model gave NaN.
    """
    real = len(reading.conversations)
    state = make_beam_state(*rows_of(reading, beams, sampling), beams, real, reading.room, fill)
    state = jax.tree.map(place, state)
    vocabulary = len(sampling.eos)
    candidates = beams * min(max(2, 1 + int(sampling.eos.sum())), vocabulary)
    state = beam_search(model, cache, state, logits, sampling, rules, np.int32(limit), candidates=candidates)
    answers, lengths, scores, broken = fetch((state.answers, state.lengths, state.scores, state.broken))
    _check_finite(broken[:real], 1)
    own = reading.own
    longest = lengths[own, :best].max(initial=0)
    return answers[own, :best, :longest].reshape(-1, longest), scores[own, :best].reshape(-1)


def rows_of(reading: PrefillInputs, copies: int, sampling: Sampling) -> tuple[History, np.ndarray, np.ndarray]:
    """History, automaton states and visible images of every row before its first new token."""
    rows = [*reading.conversations, *[np.zeros(0, np.int32)] * (len(reading.tokens) - len(reading.conversations))]
    rows = [row for row in rows for _ in range(copies)]
    stop_table = np.asarray(sampling.stop_table)
    states = np.array([state_after(stop_table, row) for row in rows], np.int32)
    return make_history(rows, sampling, reading.slots), states, np.repeat(reading.image_mask[:, -1], copies, axis=0)


def _check_finite(broken: np.ndarray, copies: int) -> None:
    if broken.any():
        row = int(np.argmax(broken)) // copies
        raise ValueError(
            f"The model's scores for prompt {row} became NaN; look for NaN in its images and in the weights, "
            "and compute in bfloat16 or float32, not float16."
        )
