"""Stop strings without leaving the device: their bytes and the vocabulary's as one table of state transitions.

The strings make an Aho-Corasick automaton over bytes; running every token's bytes through it from every state gives a
table `state, token -> state`, so that the decode loop finds a stop string, however it falls across tokens, with one
look-up per row.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from idefics_jax.generation.buckets import bucket

STATES = 32  # smallest table of stop strings


def make_stop_table(stop_strings: Sequence[str], tokenizer: Any, vocabulary: int) -> np.ndarray:
    """`[states, v]` int32: the state after a token, or `-1 - state` where the token completes a stop string.

    State 0 is the start. `tokenizer` is a `tokenizers.Tokenizer` with LLaMA's pieces, or an object that has one as its
    `tokenizer`, such as a processor.

    Raises:
        ValueError: there is no tokenizer to tell what text the tokens stand for.
    """
    if not stop_strings:
        return np.zeros((1, vocabulary), np.int32)
    if tokenizer is None:
        raise ValueError("stop_strings need to know the tokens' text; pass tokenizer=processor.tokenizer.")
    step, complete = _automaton([text.encode() for text in stop_strings])
    after, hit = _run(step, complete, token_bytes(tokenizer, vocabulary))
    table = np.zeros((bucket(len(step), STATES), vocabulary), np.int32)
    table[: len(step)] = np.where(hit, -1 - after, after)
    return table


def advance(
    table: Int[Array, "states v"], state: Int[Array, "..."], token: Int[Array, "..."]
) -> tuple[Int[Array, "..."], Bool[Array, "..."]]:
    """The states after one more token, and which tokens completed a stop string."""
    entry = table[state, token]
    return jnp.where(entry < 0, -1 - entry, entry), entry < 0


def state_after(table: np.ndarray, tokens: np.ndarray) -> int:
    """The state after a row's `tokens`: a stop string may begin in the prompt and end in the answer."""
    state = 0
    if len(table) > 1:
        for token in tokens[-len(table) :]:
            entry = table[state, token]
            state = -1 - entry if entry < 0 else entry
    return int(state)


def token_bytes(tokenizer: Any, vocabulary: int) -> list[bytes]:
    """The text that each token adds, as UTF-8: `▁` is a space, `<0x0A>` the byte 10; unknown ids add nothing."""
    while not hasattr(tokenizer, "get_vocab"):  # a processor has a tokenizer, which has one of `tokenizers`
        tokenizer = tokenizer.tokenizer
    texts = [b""] * vocabulary
    for piece, token in tokenizer.get_vocab().items():
        if token < vocabulary:
            is_byte = len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
            texts[token] = bytes([int(piece[3:5], 16)]) if is_byte else piece.replace("▁", " ").encode()
    return texts


def _automaton(patterns: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """`[states, 256]` transitions and `[states]` whether a pattern ends there (Aho & Corasick 1975)."""
    children: list[dict[int, int]] = [{}]
    ends = [False]
    for pattern in patterns:
        state = 0
        for byte in pattern:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
                ends.append(False)
            state = children[state][byte]
        ends[state] = True
    step, complete = np.zeros((len(children), 256), np.int32), np.array(ends)
    fallback = [0] * len(children)  # the state of the longest proper suffix that also begins a pattern
    queue = [0]
    for state in queue:  # breadth first, so that a fallback's own line is complete
        step[state] = step[fallback[state]] if state else 0
        complete[state] |= complete[fallback[state]]
        for byte, child in children[state].items():
            fallback[child] = int(step[state, byte]) if state else 0
            step[state, byte] = child
            queue.append(child)
    return step, complete


def _run(step: np.ndarray, complete: np.ndarray, texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Every token's bytes from every state: `[states, v]` states after it, and whether a pattern ended on the way."""
    lengths = np.array([len(text) for text in texts])
    longest_first = np.argsort(-lengths, kind="stable")
    counts = np.searchsorted(-lengths[longest_first], -np.arange(lengths.max()), side="left")  # tokens longer than i
    letters = np.frombuffer(b"".join(text.ljust(lengths.max(), b"\0") for text in texts), np.uint8)
    letters = letters.reshape(len(texts), -1)[longest_first]
    states = np.repeat(np.arange(len(step), dtype=np.int32)[:, None], len(texts), axis=1)
    hit = np.zeros(states.shape, bool)
    for position, count in enumerate(counts):
        states[:, :count] = step[states[:, :count], letters[:count, position]]
        hit[:, :count] |= complete[states[:, :count]]
    inverse = np.argsort(longest_first)
    return states[:, inverse], hit[:, inverse]
