"""The decode loop: one compiled program that stays on the device until every row has ended."""

# The tuples below are made of numpy on the host and hold JAX arrays once traced:
# pyright: reportArgumentType=false

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from idefics_jax.generation.sampling import History, Sampling, restrict, sample, warp
from idefics_jax.generation.stopping import advance
from idefics_jax.nn.cache import Cache
from idefics_jax.parallel.hardware import DECODING
from idefics_jax.parallel.mesh import constrain, per_shard, row_specs, spec


class DecodeState(NamedTuple):
    """State of the loop, apart from the cache; `b` counts answers: prompts times answers to each.

    Attributes:
        row: each row's number, which its draws depend on.
        token: what was chosen last; the cache does not have it yet.
        live: whether `token` is part of the answer, rather than padding after its end.
        done: rows that have ended.
        broken: rows that ended because the model gave NaN.
        answer: the tokens chosen so far, padded after the end.
        count: how many of them each row has, its end included.
        step: how many the longest row has.
        history: what the rules of sampling remember.
        stop_state: where each row is in the automaton of the stop strings.
        image_mask: the images that generated tokens see: those that the prompt's last token saw.
    """

    row: Int[Array, "b"]
    token: Int[Array, "b"]
    live: Bool[Array, "b"]
    done: Bool[Array, "b"]
    broken: Bool[Array, "b"]
    answer: Int[Array, "b n"]
    count: Int[Array, "b"]
    step: Int[Array, ""]
    history: History
    stop_state: Int[Array, "b"]
    image_mask: Bool[Array, "b i"]


def make_state(
    history: History, stop_state: np.ndarray, image_mask: np.ndarray, real: int, room: int, pad: int
) -> DecodeState:
    """The state before the first token. Only the first `real` rows run; the others fill up a bucket."""
    rows = len(stop_state)
    return DecodeState(
        row=np.arange(rows, dtype=np.int32),
        token=np.full(rows, pad, np.int32),
        live=np.zeros(rows, bool),
        done=np.arange(rows) >= real,
        broken=np.zeros(rows, bool),
        answer=np.full((rows, room), pad, np.int32),
        count=np.zeros(rows, np.int32),
        step=np.int32(0),
        history=history,
        stop_state=stop_state,
        image_mask=image_mask,
    )


def choose(state: DecodeState, logits: Float[Array, "p v"], sampling: Sampling, do_sample: bool) -> DecodeState:
    """Takes the next token of every row from the model's scores, of each row or of each prompt. A row needs no other:
    on a mesh every device chooses for its own."""
    rows = row_specs(state)
    return per_shard(partial(_choose, do_sample=do_sample), (rows, spec("batch"), spec()), rows)(
        state, constrain(logits, "batch"), sampling
    )


def _choose(state: DecodeState, logits: Float[Array, "p v"], sampling: Sampling, do_sample: bool) -> DecodeState:
    if len(logits) < len(state.token):
        logits = jnp.repeat(logits, len(state.token) // len(logits), axis=0)
    scores = restrict(logits, state.history, state.step, sampling)
    if do_sample:
        token = sample(warp(scores, sampling), state.row, state.step, sampling.seed)
    else:
        token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    live = ~state.done
    token = jnp.where(live, token, sampling.pad)
    broken = state.broken | (live & jnp.isnan(logits).any(axis=-1))
    stop_state, stopped = advance(sampling.stop_table, state.stop_state, token)
    return DecodeState(
        row=state.row,
        token=token,
        live=live,
        done=state.done | broken | sampling.eos[token] | stopped,
        broken=broken,
        answer=jax.lax.dynamic_update_slice(state.answer, token[:, None], (0, state.step)),
        count=state.count + live,
        step=state.step + 1,
        history=state.history.append(token),
        stop_state=stop_state,
        image_mask=state.image_mask,
    )


@partial(jax.jit, static_argnames="do_sample")
def start(state: DecodeState, logits: Float[Array, "p v"], sampling: Sampling, *, do_sample: bool) -> DecodeState:
    """Chooses the first tokens, from the scores that prefill gave for each of `p` prompts."""
    return choose(state, logits, sampling, do_sample)


def decode(
    model: Any, cache: Cache, state: DecodeState, sampling: Sampling, limit: int, *, do_sample: bool
) -> tuple[Cache, DecodeState]:
    """Reads the token chosen last and chooses the next, until all rows have ended or have `limit` tokens.

    It consumes the cache, except for the images' keys and values: another context may share them.
    """
    images, cache = cache.cross_attention, cache._replace(cross_attention=None)
    cache, state = _decode(model, images, cache, state, sampling, np.int32(limit), do_sample=do_sample)
    return cache._replace(cross_attention=images), state


@partial(jax.jit, static_argnames="do_sample", donate_argnames=("cache", "state"), compiler_options=DECODING)
def _decode(
    model: Any,
    images: Any,
    cache: Cache,
    state: DecodeState,
    sampling: Sampling,
    limit: Int[Array, ""],
    *,
    do_sample: bool,
) -> tuple[Cache, DecodeState]:

    def running(carry: tuple[Cache, DecodeState]) -> Bool[Array, ""]:
        return (carry[1].step < limit) & ~jnp.all(carry[1].done)

    def step(carry: tuple[Cache, DecodeState]) -> tuple[Cache, DecodeState]:
        cache, state = carry
        x = model.model.embed(state.token[:, None])
        cache = cache._replace(cross_attention=images)
        hidden, cache = model.model.extend(x, state.live[:, None], state.image_mask[:, None], cache)
        state = choose(state, model.logits(hidden)[:, 0], sampling, do_sample)
        return cache._replace(cross_attention=None), state

    return jax.lax.while_loop(running, step, (cache, state))
