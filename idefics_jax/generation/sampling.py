"""From the model's scores to the next token: the rules in `transformers`' order, all of them traced values.

One compiled program serves every setting; a rule that is off has the value that changes nothing.
"""

# The tuples below are made of numpy on the host and hold JAX arrays once traced:
# pyright: reportArgumentType=false

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from idefics_jax.generation.buckets import bucket

NO_TOKEN = -1
BAD_WORD_LENGTH = 4  # smallest width of the table of bad words


class Sampling(NamedTuple):
    """Settings that choose the next token and end an answer. `v` counts the additional vocabulary too."""

    temperature: Float[Array, ""]  # scores are divided by it
    top_k: Int[Array, ""]  # only so many of the best scores stay; 0: all
    outside_top_p: Float[Array, ""]  # 1 - top_p: the least likely tokens go while they add up to no more than this
    min_p: Float[Array, ""]  # tokens less likely than `min_p` times the likeliest go
    repetition_penalty: Float[Array, ""]  # scores of tokens seen before are divided (if negative, multiplied) by it
    ngram: Int[Array, ""] | None  # so many tokens in a row occur only once; None: no such rule, nor its program
    min_new_tokens: Int[Array, ""]  # no end of sequence before so many
    eos: Bool[Array, "v"]  # tokens that end a sequence
    banned: Bool[Array, "v"]  # suppressed tokens and bad words of one token
    bad_words: Int[Array, "w l"]  # longer bad words, filled with -1 on the left; unused lines end in `v`
    stop_table: Int[Array, "states v"]  # the automaton of the stop strings, see stopping.py
    pad: Int[Array, ""]  # what follows the end
    seed: UInt[Array, ""]


class History(NamedTuple):
    """History of tokens that the rules need."""

    seen: Bool[Array, "b v"]  # tokens that occur in the row, prompt and answer
    recent: Int[Array, "b m"]  # the last tokens, -1 where there was none: `l - 1`, or all where n-grams are looked for

    def append(self, token: Int[Array, "b"]) -> "History":
        """The history with one more token per row."""
        is_token = jnp.arange(self.seen.shape[1]) == token[:, None]
        return History(self.seen | is_token, jnp.concatenate([self.recent[:, 1:], token[:, None]], axis=1))


def make_sampling(
    vocabulary: int,
    stop_table: np.ndarray,
    *,
    eos: Sequence[int],
    pad: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    no_repeat_ngram_size: int,
    min_new_tokens: int,
    bad_words_ids: Sequence[Sequence[int]],
    suppress_tokens: Sequence[int],
    seed: int,
) -> Sampling:
    """Puts settings into arrays, which `GenerationConfig.check` and `token_ids` have checked."""
    words = [list(word) for word in bad_words_ids if list(word) not in [[token] for token in eos]]
    singles = [word[0] for word in words if len(word) == 1]
    longer = [word for word in words if len(word) > 1]
    width = bucket(max(map(len, longer), default=0), BAD_WORD_LENGTH)
    table = np.full((bucket(len(longer)) if longer else 0, width), NO_TOKEN, np.int32)
    table[:, -1] = vocabulary
    for line, word in zip(table, longer, strict=False):
        line[-len(word) :] = word
    return Sampling(
        temperature=np.float32(temperature),
        top_k=np.int32(min(top_k, vocabulary)),
        outside_top_p=np.float32(1 - top_p),
        min_p=np.float32(min_p),
        repetition_penalty=np.float32(repetition_penalty),
        ngram=np.int32(no_repeat_ngram_size) if no_repeat_ngram_size else None,
        min_new_tokens=np.int32(min_new_tokens),
        eos=_mask(vocabulary, eos),
        banned=_mask(vocabulary, [*suppress_tokens, *singles]),
        bad_words=table,
        stop_table=stop_table,
        pad=np.int32(pad),
        seed=np.uint32(seed % 2**32),
    )


def make_history(rows: Sequence[np.ndarray], sampling: Sampling, slots: int) -> History:
    """The history of rows that hold these tokens so far; no row will have more than `slots`."""
    seen = np.zeros((len(rows), sampling.eos.shape[0]), bool)
    width = sampling.bad_words.shape[1] - 1
    if sampling.ngram is not None:
        width = max(width, slots)
    recent = np.full((len(rows), width), NO_TOKEN, np.int32)
    for row, tokens in enumerate(rows):
        seen[row, tokens] = True
        if last := min(len(tokens), recent.shape[1]):
            recent[row, -last:] = tokens[-last:]
    return History(seen, recent)


def _mask(size: int, tokens: Sequence[int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[list(tokens)] = True
    return mask


def restrict(
    scores: Float[Array, "b v"], history: History, new_tokens: Int[Array, ""], sampling: Sampling
) -> Float[Array, "b v"]:
    """Repetition penalty, then `-inf` for what may not come next: `transformers`' logits processors."""
    penalty = sampling.repetition_penalty
    penalised = jnp.where(scores < 0, scores * penalty, scores / penalty)
    scores = jnp.where(history.seen, penalised, scores)
    banned = sampling.banned | (sampling.eos & (new_tokens < sampling.min_new_tokens))
    banned = banned | _ends_of_bad_words(history, sampling)
    if sampling.ngram is not None:
        banned |= _ends_of_ngrams(history, sampling.ngram)
    return jnp.where(banned, -jnp.inf, scores)


def _ends_of_bad_words(history: History, sampling: Sampling) -> Bool[Array, "b v"]:
    if not sampling.bad_words.shape[0]:
        return jnp.zeros_like(history.seen)
    beginnings, ends = sampling.bad_words[:, :-1], sampling.bad_words[:, -1]
    recent = history.recent[:, -beginnings.shape[1] :]
    begun = jnp.all((beginnings == NO_TOKEN) | (beginnings == recent[:, None]), axis=-1)
    return jnp.any(begun[:, :, None] & (ends[:, None] == jnp.arange(history.seen.shape[1])), axis=1)


def _ends_of_ngrams(history: History, size: Int[Array, ""]) -> Bool[Array, "b v"]:
    """The tokens that followed, somewhere in the row, what its last `size - 1` tokens are."""
    recent, width = history.recent, history.recent.shape[1]

    def also(back: Int[Array, ""], same: Bool[Array, "b m"]) -> Bool[Array, "b m"]:
        last = jax.lax.dynamic_slice_in_dim(recent, width - back, 1, axis=1)
        before = jnp.where(jnp.arange(width) < back, NO_TOKEN, jnp.roll(recent, back, axis=1))
        return same & (before == last) & (last != NO_TOKEN)

    follows = jax.lax.fori_loop(1, jnp.minimum(size, width + 1), also, recent != NO_TOKEN)
    places = jnp.where(follows, recent, history.seen.shape[1])  # others beyond the vocabulary, where they are dropped
    row = jnp.arange(len(recent))[:, None]
    return jnp.zeros_like(history.seen).at[row, places].set(True, mode="drop")


def warp(scores: Float[Array, "b v"], sampling: Sampling) -> Float[Array, "b v"]:
    """Temperature, top-k, top-p and min-p: `-inf` for what is not to be drawn."""
    scores = scores / sampling.temperature
    sorts = (sampling.top_k > 0) | (sampling.outside_top_p > 0)
    scores = jax.lax.cond(sorts, _keep_top, lambda scores, _: scores, scores, sampling)
    probabilities = jax.nn.softmax(scores, axis=-1)
    unlikely = probabilities < sampling.min_p * jnp.max(probabilities, axis=-1, keepdims=True)
    return jnp.where(unlikely, -jnp.inf, scores)


def _keep_top(scores: Float[Array, "b v"], sampling: Sampling) -> Float[Array, "b v"]:
    vocabulary = scores.shape[-1]
    order = jnp.argsort(scores, axis=-1)  # ascending and stable: of equal scores the first tokens go first
    ranked = jnp.take_along_axis(scores, order, axis=-1)
    kept = jnp.where(sampling.top_k > 0, sampling.top_k, vocabulary)
    ranked = jnp.where(ranked < ranked[:, vocabulary - kept, None], -jnp.inf, ranked)
    mass = jnp.cumsum(jax.nn.softmax(ranked, axis=-1), axis=-1)
    unlikely = (mass <= sampling.outside_top_p) & (sampling.outside_top_p > 0)
    ranked = jnp.where(unlikely.at[:, -1].set(False), -jnp.inf, ranked)
    return jnp.put_along_axis(scores, order, ranked, axis=-1, inplace=False)


def sample(
    scores: Float[Array, "b v"], row: Int[Array, "b"], new_tokens: Int[Array, ""], seed: UInt[Array, ""]
) -> Int[Array, "b"]:
    """Sample a token per row. The randomness depends on the row's number alone: other rows do not change it."""
    key = jax.random.fold_in(jax.random.key(seed), new_tokens)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, row)
    return jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)
