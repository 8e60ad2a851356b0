"""Greedy decoding and sampling: the reference's tokens, and the same ones however a prompt is batched and padded."""

import numpy as np
import pytest
from flax import nnx

from idefics_jax import IdeficsForVisionText2Text
from tests.reference import record
from tests.reference.generation import (
    BATCHES,
    EOS,
    NEW_TOKENS,
    ROWS,
    RULES,
    config,
    random_model,
    random_prompts,
    reference_generate,
    reference_model,
    rows_alone,
    shared_model,
)

PER_TOKEN = ("input_ids", "attention_mask", "image_attention_mask")


@pytest.fixture(scope="module")
def model():
    return shared_model()


def answers(model, batch, **rules):
    """The new tokens alone."""
    tokens = model.generate(**batch, **{"max_new_tokens": NEW_TOKENS, "eos_token_id": EOS, **rules})
    return tokens[:, batch["input_ids"].shape[1] :]


def same(answer, alone):
    """Whether an answer is `alone` followed by padding."""
    end = len(alone)
    return np.array_equal(answer[:end], alone) and not answer[end:].any()


def right_padded(batch):
    """The same prompts with their padding after them."""
    moved = {name: np.zeros_like(batch[name]) for name in PER_TOKEN}
    for row, real in enumerate(batch["attention_mask"] != 0):
        for name in PER_TOKEN:
            moved[name][row, : real.sum()] = batch[name][row, real]
    return batch | moved


@pytest.mark.parametrize("name", ["greedy", "rules"])
def test_tokens_are_transformers(name, model):
    recorded = record.load("generation")
    for seed in range(BATCHES[name]):
        tokens = model.generate(
            **random_prompts(model.config, seed, ROWS), max_new_tokens=NEW_TOKENS, eos_token_id=EOS, **RULES[name]
        )
        np.testing.assert_array_equal(tokens, recorded[f"{name} {seed}"])


CONFIGS = {
    "no resampler": {"use_resampler": False},
    "vector alphas, no norms": {"alpha_type": "vector", "qk_layer_norms": False},
    "interval 2, tied": {"num_hidden_layers": 4, "cross_layer_interval": 2, "tie_word_embeddings": True},
    "no additional vocabulary": {"additional_vocab_size": 0, "vocab_size": 99},
}


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("rules", [{}, {"num_beams": 3}, RULES["rules"]], ids=["greedy", "beams", "rules"])
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_tokens_are_transformers_live(changes, rules):
    pytest.importorskip("torch")
    model = random_model(config(**changes))
    reference = reference_model(model)
    for seed in range(100, 107):
        batch = random_prompts(model.config, seed, 4, lengths=(3, 60), images=(0, 5))
        batch["input_ids"] = np.minimum(batch["input_ids"], 97)
        settings = {"max_new_tokens": 16, "eos_token_id": EOS, **rules}
        expected = reference_generate(reference, batch, do_sample=False, **settings)
        np.testing.assert_array_equal(model.generate(**batch, **settings), expected)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),  # it gives transformers' tokens above
        {"num_hidden_layers": 4, "cross_layer_interval": 2},
    ],
    ids=str,
)
def test_cached_equals_uncached(changes):
    """Each token is the likeliest after a forward pass over all before it, in which new tokens see the images that the
    prompt's last token saw; and it matters that they do."""

    model = random_model(config(**changes)) if changes else shared_model()

    def likeliest(alone, tokens, new_see):
        length, rest = alone["input_ids"].shape[1], 64 - tokens.shape[1]
        new_mask = np.repeat(alone["image_attention_mask"][:, -1:], tokens.shape[1] - length, axis=1) * new_see
        mask = np.concatenate([alone["image_attention_mask"], new_mask], axis=1)
        unused = 3 - mask.shape[2]
        logits = model(
            np.pad(tokens, ((0, 0), (0, rest))),
            np.pad(np.ones_like(tokens), ((0, 0), (0, rest))),
            pixel_values=np.pad(alone["pixel_values"], ((0, 0), (0, unused), *[(0, 0)] * 3)),
            image_attention_mask=np.pad(mask, ((0, 0), (0, rest), (0, unused))),
        ).logits
        return np.argmax(np.asarray(logits), axis=-1)[:, length - 1 : tokens.shape[1] - 1]

    differ = 0
    for seed in range(2):
        for alone in rows_alone(random_prompts(model.config, seed, ROWS)):
            new = answers(model, alone, eos_token_id=())
            tokens = np.concatenate([alone["input_ids"], new], axis=1)
            np.testing.assert_array_equal(new, likeliest(alone, tokens, 1))
            differ += not np.array_equal(new, likeliest(alone, tokens, 0))
    assert differ > 3


@pytest.mark.parametrize(
    ("name", "sizes"), [("greedy", {"images": (0, 9), "lengths": (1, 70)}), ("rules", {})], ids=str
)
def test_a_row_of_a_batch_answers_as_alone(name, sizes, model):
    for seed in range(3):
        batch = random_prompts(model.config, seed, ROWS, **sizes)
        together = answers(model, batch, **RULES[name])
        for answer, alone in zip(together, rows_alone(batch), strict=True):
            assert same(answer, answers(model, alone, **RULES[name])[0])


def test_sampling_a_row_does_not_depend_on_the_others(model):
    batch, other = (random_prompts(model.config, seed, ROWS, lengths=(28, 28), images=(3, 3)) for seed in (0, 1))
    mixed = {name: np.concatenate([batch[name][:2], other[name][2:]]) for name in batch}
    options = {"do_sample": True, "temperature": 2.0, "seed": 7, "eos_token_id": ()}
    np.testing.assert_array_equal(answers(model, batch, **options)[:2], answers(model, mixed, **options)[:2])


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "seed": 3}, pytest.param({"num_beams": 2}, marks=pytest.mark.slow)], ids=str
)
def test_the_side_of_padding_changes_nothing(options, model):
    for seed in range(3):
        batch = random_prompts(model.config, seed, ROWS)
        left, right = (answers(model, prompts, **options) for prompts in (batch, right_padded(batch)))
        np.testing.assert_array_equal(left, right)


def test_nan_in_an_image_stays_in_its_row(model):
    batch = random_prompts(model.config, 0, ROWS, images=(2, 3), lengths=(12, 20))
    clean = np.asarray(model(**batch).logits)
    batch["pixel_values"][2, 1] = np.nan
    logits = np.asarray(model(**batch).logits)
    assert np.isnan(logits[2, -1]).all()
    for row in (0, 1, 3):
        np.testing.assert_array_equal(logits[row], clean[row])
    for options in ({}, {"do_sample": True}, {"num_beams": 3}):
        with pytest.raises(ValueError, match=r"scores for prompt 2 became NaN; look for NaN in its images"):
            answers(model, batch, **options)


def test_an_image_of_another_row_or_a_padding_image_is_never_seen(model):
    batch = random_prompts(model.config, 3, ROWS, images=(0, 3))
    expected = answers(model, batch)
    seen = batch["image_attention_mask"].any(axis=1)
    assert not seen.all()
    batch["pixel_values"][~seen] = np.nan
    np.testing.assert_array_equal(answers(model, batch), expected)


def test_seeds(model):
    batch = random_prompts(model.config, 0, ROWS)

    def draw(seed, **options):
        return answers(model, batch, do_sample=True, temperature=3.0, top_k=0, seed=seed, eos_token_id=(), **options)

    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).mean() > 0.5
    several = draw(1, num_return_sequences=2)
    assert several.shape == (2 * ROWS, NEW_TOKENS)
    assert len({tuple(row) for row in several.tolist()}) == 2 * ROWS
    np.testing.assert_array_equal(draw(1, num_return_sequences=2), several)


def test_top_k_of_one_is_greedy(model):
    batch = random_prompts(model.config, 0, ROWS)
    np.testing.assert_array_equal(answers(model, batch, do_sample=True, top_k=1, seed=5), answers(model, batch))


class Streamer:
    def __init__(self):
        self.calls, self.ended = [], False

    def put(self, tokens):
        assert not self.ended
        self.calls.append(np.asarray(tokens))

    def end(self):
        self.ended = True


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "num_return_sequences": 2}, {"max_new_tokens": 1}], ids=str
)
@pytest.mark.parametrize("early", [False, True], ids=["to the limit", "until all have ended"])
def test_streaming_equals_not_streaming(early, options, model):
    for seed, rows in ((1, 3), (0, 1)):  # the second by the programs of the first
        batch, streamer = random_prompts(model.config, seed, rows), Streamer()
        expected = answers(model, batch, eos_token_id=(), **options)
        ends = expected[:, :4].max(axis=1).tolist() if early else ()
        expected = answers(model, batch, eos_token_id=ends, **options)
        assert expected.shape[1] <= 4 or not early
        streamed = answers(model, batch, eos_token_id=ends, streamer=streamer, **options)
        np.testing.assert_array_equal(streamed, expected)
        np.testing.assert_array_equal(streamer.calls[0], batch["input_ids"])
        np.testing.assert_array_equal(np.stack(streamer.calls[1:], axis=1), expected)
        assert streamer.ended


def test_answers_end_with_their_end_of_sequence(model):
    ends = 0
    for seed in range(12):
        batch = random_prompts(model.config, seed, ROWS)
        for row in answers(model, batch, pad_token_id=96):
            stops = np.flatnonzero(np.isin(row, EOS))
            if len(stops):
                ends += 1
                assert (row[stops[0] + 1 :] == 96).all()
    assert ends > 3


def test_limits(model):
    batch = random_prompts(model.config, 0, 2)
    width = batch["input_ids"].shape[1]
    assert answers(model, batch, eos_token_id=(), max_new_tokens=1).shape == (2, 1)
    assert model.generate(**batch, eos_token_id=()).shape == (2, width + 20)
    assert model.generate(**batch, eos_token_id=(), max_length=width + 3).shape == (2, width + 3)
    assert answers(model, batch, min_new_tokens=NEW_TOKENS).shape == (2, NEW_TOKENS)


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, *(pytest.param(x, marks=pytest.mark.slow) for x in ({}, {"do_sample": True, "seed": 4}))],
    ids=str,
)
def test_stacked_layers_answer_as_listed_ones(options, model, tmp_path):
    model.save_pretrained(tmp_path)
    stacked = IdeficsForVisionText2Text.from_pretrained(tmp_path, stacked=True)
    assert not isinstance(stacked.model.decoder.groups, nnx.List)
    batch = random_prompts(model.config, 0, ROWS)
    np.testing.assert_array_equal(answers(stacked, batch, **options), answers(model, batch, **options))
