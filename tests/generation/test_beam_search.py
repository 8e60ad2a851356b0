"""Beam search: the reference's tokens and scores, row by row what each prompt alone gives."""

import numpy as np
import pytest

from tests.reference import record
from tests.reference.generation import (
    BATCHES,
    EOS,
    NEW_TOKENS,
    ROWS,
    RULES,
    random_prompts,
    reference_model,
    rows_alone,
    shared_model,
    torch_inputs,
)

SETTINGS = {"max_new_tokens": NEW_TOKENS, "eos_token_id": EOS}
EIGHT = {"max_new_tokens": 8, "min_new_tokens": 8, "eos_token_id": EOS}  # by the programs that serve answers that end


@pytest.fixture(scope="module")
def model():
    return shared_model()


@pytest.mark.parametrize("name", [name for name in RULES if "beams" in name])
def test_tokens_are_transformers(name, model):
    recorded = record.load("generation")
    for seed in range(BATCHES[name]):
        tokens = model.generate(**random_prompts(model.config, seed, ROWS), **SETTINGS, **RULES[name])
        np.testing.assert_array_equal(tokens, recorded[f"{name} {seed}"])


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 3.0])
def test_tokens_and_scores_are_transformers_live(early_stopping, length_penalty, model):
    pytest.importorskip("torch")
    reference = reference_model(model)
    for seed in range(200, 206):
        batch = random_prompts(model.config, seed, 3, lengths=(3, 40))
        rules = {
            **SETTINGS,
            "num_beams": 4,
            "num_return_sequences": 3,
            "early_stopping": early_stopping,
            "length_penalty": length_penalty,
            "return_dict_in_generate": True,
        }
        expected = reference.generate(**torch_inputs(batch), **rules, do_sample=False, output_scores=True)
        ours = model.generate(**batch, **rules)
        np.testing.assert_array_equal(ours.sequences, expected.sequences.numpy())
        np.testing.assert_allclose(ours.sequences_scores, expected.sequences_scores.numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "sizes"), [("beams", {"images": (0, 9), "lengths": (1, 70)}), ("short beams", {})], ids=str
)
def test_a_row_of_a_batch_answers_as_alone(name, sizes, model):
    rules = {**SETTINGS, **RULES[name], "return_dict_in_generate": True}
    for seed in range(2):
        batch = random_prompts(model.config, seed, ROWS, **sizes)
        together, width = model.generate(**batch, **rules), batch["input_ids"].shape[1]
        several = len(together.sequences) // ROWS
        for row, alone in enumerate(rows_alone(batch)):
            output, mine = model.generate(**alone, **rules), slice(row * several, (row + 1) * several)
            answer = output.sequences[:, alone["input_ids"].shape[1] :]
            np.testing.assert_array_equal(together.sequences[mine, width : width + answer.shape[1]], answer)
            np.testing.assert_allclose(together.sequences_scores[mine], output.sequences_scores, rtol=1e-5)


def test_scores_are_the_answers_log_probabilities(model):
    """Recomputed by a forward pass over each answer."""
    alone = next(rows_alone(random_prompts(model.config, 1, 1, images=(2, 2))))
    for length_penalty in (0.0, 2.0):
        output = model.generate(
            **alone,
            **EIGHT,
            num_beams=3,
            num_return_sequences=3,
            length_penalty=length_penalty,
            return_dict_in_generate=True,
        )
        assert (np.diff(output.sequences_scores) <= 0).all()
        length = alone["input_ids"].shape[1]
        mask = alone["image_attention_mask"]
        mask = np.concatenate([mask, np.repeat(mask[:, -1:], 8, axis=1)], axis=1)
        for tokens, score in zip(output.sequences, output.sequences_scores, strict=True):
            logits = model(tokens[None], pixel_values=alone["pixel_values"], image_attention_mask=mask).logits
            logits = np.asarray(logits, np.float64)[0]
            log_probs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
            log_probs -= logits.max(-1, keepdims=True)
            total = sum(log_probs[place - 1, tokens[place]] for place in range(length, length + 8))
            np.testing.assert_allclose(score, total / 8**length_penalty, rtol=1e-4)


def test_more_beams_find_answers_at_least_as_likely(model):
    """Not a law, but so on average by far: it catches a search that loses its best beam."""
    gains = []
    for seed in range(6):
        batch = random_prompts(model.config, seed, ROWS)
        options = {**EIGHT, "return_dict_in_generate": True}
        few, many = (model.generate(**batch, num_beams=beams, **options).sequences_scores for beams in (2, 4))
        gains.extend(many - few)
    assert np.mean(np.array(gains) >= -1e-6) > 0.8
    assert np.mean(gains) > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_beams": 0}, "num_beams is 0; it must be a whole number from 1 to 256"),
        ({"num_beams": 2, "do_sample": True}, "Beam search takes the likeliest tokens; leave out"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences is 3, and there are only 2 beams"),
        ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping is 'soon'; it must be True, False or \"never\""),
        ({"num_beams": 2, "streamer": object()}, "Beam search knows its tokens only at the end"),
        ({"num_return_sequences": 2}, "Greedy decoding gives one answer, not 2"),
    ],
)
def test_settings_that_do_not_fit(options, sentence, model):
    with pytest.raises(ValueError, match=sentence):
        model.generate(**random_prompts(model.config, 0, 1), **options)
