"""Sampling rules, stop strings and buckets, each against `transformers`' own and against plain words."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer

from idefics_jax.generation.buckets import bucket, chunks
from idefics_jax.generation.sampling import make_history, make_sampling, restrict, sample, warp
from idefics_jax.generation.stopping import advance, make_stop_table, state_after, token_bytes
from tests.reference import record
from tests.reference.generation import EOS, SAMPLING, random_scores, reference_scores
from tests.support.tiny_tokenizer import IMAGE_TOKEN_ID, VOCAB_SIZE, save_tiny_tokenizer

OFF = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
    "bad_words_ids": (),
    "suppress_tokens": (),
}


def sampling_of(vocabulary=99, stop_table=None, seed=0, **rules):
    table = np.zeros((1, vocabulary), np.int32) if stop_table is None else stop_table
    return make_sampling(vocabulary, table, eos=EOS, pad=0, seed=seed, **{**OFF, **rules})


@jax.jit
def processed(scores, history, new_tokens, sampling):
    return warp(restrict(scores, history, new_tokens, sampling), sampling)


def our_scores(tokens, scores, new_tokens, **rules):
    sampling = sampling_of(scores.shape[1], **rules)
    return np.asarray(processed(scores, make_history(list(tokens), sampling, 16), np.int32(new_tokens), sampling))


@pytest.mark.parametrize("index", range(len(SAMPLING)), ids=[str(rules) for rules in SAMPLING])
def test_scores_are_transformers(index):
    recorded, rules = record.load("generation")[f"scores {index}"], SAMPLING[index]
    np.testing.assert_allclose(our_scores(*random_scores(0, rules), 2, **rules), recorded, rtol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("rules", SAMPLING, ids=str)
def test_scores_are_transformers_live(rules):
    pytest.importorskip("torch")
    for seed, new_tokens in itertools.product(range(8), (0, 2, 3)):
        tokens, scores = random_scores(seed, rules)
        expected = reference_scores(tokens, scores, new_tokens, **rules)
        np.testing.assert_allclose(our_scores(tokens, scores, new_tokens, **rules), expected, rtol=1e-6)


def test_settings_share_one_program():
    tokens, scores = random_scores(0, {})
    before = processed._cache_size()
    for rules in SAMPLING:
        our_scores(tokens, scores, 1, **rules)
    assert (
        processed._cache_size() - before <= 4
    )  # by the number and length of bad words, of which there are none or few


def drawn(scores, step, seed):
    return np.asarray(jax.jit(sample)(scores, np.arange(len(scores)), np.int32(step), np.uint32(seed)))


def test_draws_follow_the_probabilities():
    scores = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    tokens = drawn(np.tile(scores, (20_000, 1)), 3, 5)
    np.testing.assert_allclose(np.bincount(tokens, minlength=4) / len(tokens), np.exp(scores), atol=0.01)


def test_a_draw_depends_on_seed_step_and_row_but_not_on_other_rows():
    scores = np.zeros((8, 1000), np.float32)
    tokens = drawn(scores, 0, 1)
    np.testing.assert_array_equal(tokens[:3], drawn(scores[:3], 0, 1))
    assert len(set(tokens.tolist())) == 8
    assert not np.array_equal(tokens, drawn(scores, 1, 1))
    assert not np.array_equal(tokens, drawn(scores, 0, 2))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tiny_tokenizer(directory)
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


STOPS = ["User:", "\n", "<end_of_utterance>", "es a", " the", "aab", "é!"]


def completed(table, tokens):
    """Which of the tokens completes a stop string."""
    padded = np.pad(tokens, (0, 128 - len(tokens)))
    return np.asarray(_completed(table, padded)).tolist()[: len(tokens)]


@jax.jit
def _completed(table, tokens):
    return jax.lax.scan(lambda state, token: advance(table, state, token), jnp.int32(0), tokens)[1]


def random_texts(tokenizer, count):
    """Token sequences in which stop strings occur, whole and in part."""
    random = np.random.default_rng(0)
    pieces = [*STOPS, "U", "User", "e", "es", " ", "th", "the", "a", "aa", "b", "é", "!", "<0x0A>", "other"]
    for _ in range(count):
        tokens = tokenizer.encode("".join(random.choice(pieces, 12)), add_special_tokens=False).ids
        tokens += random.integers(3, VOCAB_SIZE + 3, 6).tolist()
        yield np.array(tokens, np.int32)


def test_stop_strings_are_found_at_the_token_that_completes_them(tokenizer):
    table = make_stop_table(STOPS, tokenizer, VOCAB_SIZE + 3)
    texts, found = token_bytes(tokenizer, VOCAB_SIZE + 3), 0
    for tokens in random_texts(tokenizer, 60):
        text, expected = b"", []
        for token in tokens:
            before, text = len(text), text + texts[token]
            expected.append(any(stop in text[max(0, before - len(stop) + 1) :] for stop in map(str.encode, STOPS)))
        assert completed(table, tokens) == expected
        found += sum(expected)
    assert found > 100


def test_token_texts_are_what_decoding_gives(tokenizer):
    texts, compared = token_bytes(tokenizer, VOCAB_SIZE + 5), 0
    for tokens in random_texts(tokenizer, 60):
        decoded = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        if "\N{REPLACEMENT CHARACTER}" not in decoded:  # not where random bytes are no text
            compared += 1
            assert b"".join(texts[token] for token in tokens).decode().removeprefix(" ") == decoded
    assert compared > 10
    assert texts[IMAGE_TOKEN_ID] == b"<image>"
    assert texts[3 + 10] == b"\n"
    assert texts[VOCAB_SIZE + 4] == b""


def test_a_stop_string_may_begin_in_the_prompt(tokenizer):
    table = make_stop_table(["User:"], tokenizer, VOCAB_SIZE + 3)
    tokens = np.array([*tokenizer.encode("and then User", add_special_tokens=False).ids, tokenizer.token_to_id(":")])
    state = state_after(table, tokens[:-1])
    assert state > 0
    assert advance(jnp.asarray(table), jnp.int32(state), jnp.int32(tokens[-1]))[1]
    assert state_after(table, np.tile(tokens, 30)) == state_after(table, tokens)


@pytest.mark.torch
def test_stop_strings_stop_where_transformers_does(tokenizer, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, StopStringCriteria

    save_tiny_tokenizer(tmp_path)
    criteria = StopStringCriteria(AutoTokenizer.from_pretrained(tmp_path), STOPS)
    table = make_stop_table(STOPS, tokenizer, VOCAB_SIZE + 3)
    for tokens in random_texts(tokenizer, 25):
        ours = completed(table, tokens)
        for end in range(1, len(tokens) + 1):
            assert bool(criteria(torch.from_numpy(tokens[None, :end]).long(), None)) == ours[end - 1]


def test_stop_strings_need_a_tokenizer():
    with pytest.raises(ValueError, match=r"pass tokenizer=processor\.tokenizer"):
        make_stop_table(["a"], None, 10)


def test_buckets_double():
    sizes = [bucket(size, 32) for size in range(1, 2049)]
    assert sorted(set(sizes)) == [32, 64, 128, 256, 512, 1024, 2048]
    assert all(size >= wanted for wanted, size in enumerate(sizes, 1))
    assert [bucket(count, 3) for count in range(1, 14)] == [3, 3, 3, 6, 6, 6, *[12] * 6, 24]


def test_chunks_read_every_image_once():
    assert list(chunks(10)) == [(0, 8), (8, 1), (9, 1)]
    assert list(chunks(0)) == []
    for count, unit in itertools.product(range(1, 40), (1, 2, 3)):
        pieces = list(chunks(count, unit))
        assert [start for start, _ in pieces] == [0, *np.cumsum([size for _, size in pieces])[:-1]]
        assert 0 <= sum(size for _, size in pieces) - count < unit
