"""Real photographs through processor, model and generation, on a checkpoint in the published file layout."""

import json

import jax
import numpy as np
import pytest

from idefics_jax import IdeficsForVisionText2Text, IdeficsProcessor
from tests.reference.main_job import (
    NEW_TOKENS,
    RULES,
    batches,
    photo,
    random_batch,
    reference,
    reference_answers,
    reference_inputs,
    sparse,
)
from tests.reference.record import load
from tests.support.make_checkpoint import make_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def processor(checkpoint):
    return IdeficsProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint):
    return IdeficsForVisionText2Text.from_pretrained(checkpoint, dtype="float32")


@pytest.fixture(scope="module")
def recorded():
    return load("main_job")


@pytest.mark.parametrize("number", range(2))
def test_photographs_and_prompts_become_the_reference_s_inputs(processor, recorded, number):
    inputs = processor(batches()[number])
    for name in ("input_ids", "attention_mask", "image_attention_mask"):
        np.testing.assert_array_equal(inputs[name], recorded[f"{name} {number}"])
    np.testing.assert_allclose(sparse(inputs["pixel_values"]), recorded[f"pixel_values {number}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("rules", ["greedy", pytest.param("beams", marks=pytest.mark.slow), "ruled"])
def test_answers_are_the_reference_s(processor, model, recorded, number, rules):
    tokens = model.generate(**processor(batches()[number]), max_new_tokens=NEW_TOKENS, **RULES[rules])
    np.testing.assert_array_equal(tokens, recorded[f"{rules} {number}"])
    assert processor.batch_decode(tokens, skip_special_tokens=True) == recorded[f"{rules} texts {number}"].tolist()


def test_another_photograph_changes_its_own_prompt_s_answer_alone(processor, model, recorded):
    batch = batches()[0]
    batch[0][3] = photo("rocket.jpg")  # the last image of the first prompt
    tokens = model.generate(**processor(batch), max_new_tokens=NEW_TOKENS)
    np.testing.assert_array_equal(tokens[1:], recorded["greedy 0"][1:])
    assert not np.array_equal(tokens[0], recorded["greedy 0"][0])


def test_the_checkpoint_has_the_published_files(checkpoint):
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "added_tokens.json",
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in checkpoint.glob("*.safetensors")}


@pytest.mark.torch
def test_transformers_loads_and_writes_the_same_checkpoint(checkpoint, tmp_path):
    transformers = pytest.importorskip("transformers")
    written = make_checkpoint(tmp_path, transformers=True)
    assert sorted(path.name for path in written.iterdir()) == sorted(path.name for path in checkpoint.iterdir())
    for directory in (checkpoint, written):
        _, loading = transformers.IdeficsForVisionText2Text.from_pretrained(directory, output_loading_info=True)
        assert not any(loading.values()), loading
    ours, theirs = (IdeficsForVisionText2Text.from_pretrained(directory) for directory in (checkpoint, written))
    assert ours.config == theirs.config
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), ours, theirs))


@pytest.fixture(scope="module")
def references(checkpoint):
    pytest.importorskip("transformers")
    return reference(checkpoint)


@pytest.mark.torch
@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 12))])
def test_random_batches_live(references, processor, model, seed):
    reference_processor, reference_model = references
    batch = random_batch(seed)
    theirs, inputs = reference_inputs(reference_processor, batch), processor(batch)
    np.testing.assert_array_equal(inputs["input_ids"], theirs["input_ids"])
    np.testing.assert_array_equal(inputs["image_attention_mask"], theirs["image_attention_mask"])
    pixels = theirs["pixel_values"].permute(0, 1, 3, 4, 2).numpy()
    np.testing.assert_allclose(inputs["pixel_values"], pixels, rtol=0, atol=1e-6)
    tokens, texts = reference_answers(reference_processor, reference_model, theirs)
    ours = model.generate(**inputs, max_new_tokens=NEW_TOKENS)
    np.testing.assert_array_equal(ours, tokens)
    assert processor.batch_decode(ours, skip_special_tokens=True) == texts
