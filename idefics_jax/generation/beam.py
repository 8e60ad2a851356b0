"""Beam search on the device, step for step as `transformers` (5.x) does it.

Per prompt there are `k` running beams and the `k` best finished answers so far. At each step the best `m = k * max(2,
1 + number of ends)` continuations of the running beams are taken: those that end may enter the finished ones, the
best `k` that do not end run on.
"""

# The tuples below are made of numpy on the host and hold JAX arrays once traced:
# pyright: reportArgumentType=false

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from idefics_jax.generation.sampling import History, Sampling, restrict
from idefics_jax.generation.stopping import advance
from idefics_jax.nn.cache import Cache, take_answers
from idefics_jax.parallel.hardware import DECODING
from idefics_jax.parallel.mesh import constrain, per_shard, reshape, row_specs, spec

WORST = -1e9  # the reference's stand-in for minus infinity: sums with it stay ordered


class BeamRules(NamedTuple):
    """The settings of beam search, traced.

    Attributes:
        length_divisor: float32 `[n + 1]`, `length ** length_penalty` by which a score is divided.
        stop_when_full: `early_stopping=True`: a prompt is finished once it has `k` finished answers.
        expect_longest: `early_stopping="never"` with a positive penalty: running beams are judged as if they reached
            the limit at no cost.
    """

    length_divisor: Float[Array, "n"]
    stop_when_full: Bool[Array, ""]
    expect_longest: Bool[Array, ""]


class BeamState(NamedTuple):
    """State of the search, apart from the cache; `b` prompts of `k` beams, and `bk` both in one axis.

    Attributes:
        running: the beams' tokens, `[b, k, n]`.
        running_scores: sums of their log-probabilities.
        answers, scores, lengths, finished: the best answers so far, whether each is one, and its score over its length.
        improvable: prompts whose running beams may still beat their finished ones.
        stuck: prompts all of whose continuations ended at once.
        broken: prompts for which the model gave NaN.
        real: prompts that are searched for; the others fill up a bucket.
        step: tokens chosen so far.
        history, stop_state: of the running beams, as in `DecodeState`.
        image_mask: the images that generated tokens see.
    """

    running: Int[Array, "b k n"]
    running_scores: Float[Array, "b k"]
    answers: Int[Array, "b k n"]
    scores: Float[Array, "b k"]
    lengths: Int[Array, "b k"]
    finished: Bool[Array, "b k"]
    improvable: Bool[Array, "b"]
    stuck: Bool[Array, "b"]
    broken: Bool[Array, "b"]
    real: Bool[Array, "b"]
    step: Int[Array, ""]
    history: History
    stop_state: Int[Array, "bk"]
    image_mask: Bool[Array, "bk i"]


def make_beam_rules(length_penalty: float, early_stopping: bool | str, room: int) -> BeamRules:
    """Puts settings into arrays, for answers of at most `room` tokens."""
    lengths = np.maximum(np.arange(room + 1, dtype=np.float64), 1)
    divisor = np.clip(lengths**length_penalty, 1e-37, 1e37)  # a float32, of any length
    return BeamRules(
        length_divisor=divisor.astype(np.float32),
        stop_when_full=np.bool_(early_stopping not in (False, "never")),
        expect_longest=np.bool_(early_stopping == "never" and length_penalty > 0),
    )


def make_beam_state(
    history: History, stop_state: np.ndarray, image_mask: np.ndarray, beams: int, real: int, room: int, fill: int
) -> BeamState:
    """The state before the first token, for `bk` rows. Only the first `real` prompts run."""
    prompts = len(stop_state) // beams
    runs = np.arange(prompts) < real
    tokens = np.full((prompts, beams, room), fill, np.int32)
    running_scores = np.zeros((prompts, beams), np.float32)
    running_scores[:, 1:] = WORST  # all beams begin alike: let only the first one continue
    return BeamState(
        running=tokens,
        running_scores=running_scores,
        answers=tokens,
        scores=np.full((prompts, beams), WORST, np.float32),
        lengths=np.zeros((prompts, beams), np.int32),
        finished=np.zeros((prompts, beams), bool),
        improvable=np.ones(prompts, bool),
        stuck=np.zeros(prompts, bool),
        broken=np.zeros(prompts, bool),
        real=runs,
        step=np.int32(0),
        history=history,
        stop_state=stop_state,
        image_mask=image_mask,
    )


def choose(
    state: BeamState,
    logits: Float[Array, "r v"],
    sampling: Sampling,
    rules: BeamRules,
    limit: Int[Array, ""],
    candidates: int,
) -> tuple[BeamState, Int[Array, "bk"]]:
    """Take a step of the search, from the scores of each beam or of each prompt.

    Also returns the row that each new beam continues, as `take_rows` takes it. A prompt needs no other: on a mesh every
    device chooses for its own.
    """
    rows, same = row_specs(state), spec()
    return per_shard(
        partial(_choose, candidates=candidates), (rows, spec("batch"), same, same, same), (rows, spec("batch"))
    )(state, constrain(logits, "batch"), sampling, rules, limit)


def _choose(
    state: BeamState,
    logits: Float[Array, "r v"],
    sampling: Sampling,
    rules: BeamRules,
    limit: Int[Array, ""],
    candidates: int,
) -> tuple[BeamState, Int[Array, "bk"]]:
    prompts, beams, _ = state.running.shape
    if len(logits) == prompts:
        logits = jnp.repeat(logits, beams, axis=0)
    vocabulary = logits.shape[-1]
    log_probs = restrict(jax.nn.log_softmax(logits, axis=-1), state.history, state.step, sampling)
    totals = log_probs.reshape(prompts, beams, vocabulary) + state.running_scores[..., None]
    best, place = jax.lax.top_k(totals.reshape(prompts, -1), candidates)
    beam, token = place // vocabulary, (place % vocabulary).astype(jnp.int32)
    row = beam + beams * jnp.arange(prompts)[:, None]
    stop_state, stopped = advance(sampling.stop_table, state.stop_state[row], token)
    ended = sampling.eos[token] | stopped | (state.step + 1 >= limit)
    tokens = jnp.take_along_axis(state.running, beam[..., None], axis=1)
    tokens = jnp.where(jnp.arange(tokens.shape[2]) == state.step, token[..., None], tokens)

    # Those that run on.
    running_scores, chosen = jax.lax.top_k(best + ended * WORST, beams)
    row = jnp.take_along_axis(row, chosen, axis=1).reshape(-1)
    last = jnp.take_along_axis(token, chosen, axis=1).reshape(-1)

    # Those that are finished: only among the best k continuations, the others are there to keep k beams running.
    enters = ended & (jnp.arange(candidates) < beams)
    full = jnp.all(state.finished, axis=1) & rules.stop_when_full
    new_scores = best / rules.length_divisor[state.step + 1]
    new_scores = new_scores + full[:, None] * WORST + ~state.improvable[:, None] * WORST + ~enters * WORST
    scores, kept = jax.lax.top_k(jnp.concatenate([state.scores, new_scores], axis=1), beams)

    def merged(old: Array, new: Array) -> Array:
        both = jnp.concatenate([old, new], axis=1)
        return jnp.take_along_axis(both, kept.reshape(*kept.shape, *[1] * (both.ndim - 2)), axis=1)

    finished = merged(state.finished, enters)
    step = state.step + 1
    expected_length = jnp.where(rules.expect_longest, limit, step)
    hope = running_scores[:, 0] / rules.length_divisor[expected_length]
    worst_finished = jnp.where(finished, jnp.min(scores, axis=1, keepdims=True), WORST)
    history = jax.tree.map(lambda x: x[row], state.history)
    broken = state.broken | (state.real & jnp.isnan(logits).reshape(prompts, -1).any(axis=1))
    return BeamState(
        running=jnp.take_along_axis(tokens, chosen[..., None], axis=1),
        running_scores=running_scores,
        answers=merged(state.answers, tokens),
        scores=scores,
        lengths=merged(state.lengths, jnp.full_like(token, step)),
        finished=finished,
        improvable=state.improvable & jnp.any(hope[:, None] > worst_finished, axis=1),
        stuck=jnp.all(ended, axis=1),
        broken=broken,
        real=state.real,
        step=step,
        history=history.append(last),
        stop_state=jnp.take_along_axis(stop_state, chosen, axis=1).reshape(-1),
        image_mask=state.image_mask,
    ), row


@partial(jax.jit, static_argnames="candidates", compiler_options=DECODING)
def beam_search(
    model: Any,
    cache: Cache,
    state: BeamState,
    logits: Float[Array, "b v"],
    sampling: Sampling,
    rules: BeamRules,
    limit: Int[Array, ""],
    *,
    candidates: int,
) -> BeamState:
    """The whole search, from the scores that prefill gave for each prompt to the best answers.

    Args:
        cache: with a row for every prompt.
        candidates: `m`, above.
    """

    def running(carry: tuple[Cache, BeamState]) -> Bool[Array, ""]:
        state = carry[1]
        full = jnp.all(jnp.all(state.finished, axis=1) | ~state.real) & rules.stop_when_full
        goes_on = jnp.any(state.improvable & state.real) & jnp.any(~state.stuck & state.real) & ~full
        return goes_on & ~jnp.any(state.broken)

    def step(carry: tuple[Cache, BeamState]) -> tuple[Cache, BeamState]:
        cache, state = carry
        last = jax.lax.dynamic_index_in_dim(state.running, state.step - 1, axis=2, keepdims=False)
        token = reshape(last, (last.size, 1), "batch")
        x = model.model.embed(token)
        hidden, cache = model.model.extend(x, jnp.ones(token.shape, bool), state.image_mask[:, None], cache)
        state, row = choose(state, model.logits(hidden)[:, 0], sampling, rules, limit, candidates)
        return take_answers(cache, row), state

    state, row = choose(state, logits, sampling, rules, limit, candidates)
    _, state = jax.lax.while_loop(running, step, (take_answers(cache, row // state.running.shape[1]), state))
    return state
