"""Images that are read once and kept: the same answers, and only what is needed is read."""

import numpy as np
import pytest

from idefics_jax import IdeficsForVisionText2Text
from idefics_jax.evaluation import states as module
from idefics_jax.evaluation.prompting import Images, Prompt, batch_inputs, read_images
from idefics_jax.evaluation.scoring import log_likelihoods
from idefics_jax.evaluation.states import ImageFeatureCache
from tests.evaluation.conftest import SMALL
from tests.support.random_checkpoint import save_random_checkpoint

NOTHING = Images({}, {})


@pytest.fixture
def encoded(monkeypatch):
    """How many images each call of the vision tower was given."""
    counts, encode = [], module._encode

    def count(model, pixels):
        counts.append(len(pixels))
        return encode(model, pixels)

    monkeypatch.setattr(module, "_encode", count)
    return counts


@pytest.fixture
def paths(photos):
    return [str(photos / f"{number}.png") for number in range(10)]


@pytest.fixture(scope="module")
def without_resampler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    save_random_checkpoint(folder, SMALL | {"additional_vocab_size": 2, "use_resampler": False}, std=0.3)
    return IdeficsForVisionText2Text.from_pretrained(folder, dtype="float32")


@pytest.mark.parametrize("resampler", [True, False])
def test_states_score_as_pixels_do(resampler, model, without_resampler, processor, paths):
    model = model if resampler else without_resampler
    text = "<fake_token_around_image><image><fake_token_around_image>Look." * 2
    tokens = tuple(processor.tokenizer.encode(text))
    prompts = [Prompt(tokens, (paths[first], paths[2]), ((5, 300), (300, 301, 302)), (), False) for first in range(2)]
    states = ImageFeatureCache(model, processor.image_processor).read(paths[:3], NOTHING)
    pixels = read_images(processor.image_processor, paths[:3])
    images_are = "perceiver_embeddings" if resampler else "image_encoder_embeddings"
    found = log_likelihoods(model, batch_inputs(processor, prompts, states.arrays, images_are), prompts)
    expected = log_likelihoods(model, batch_inputs(processor, prompts, pixels.arrays), prompts)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert np.ptp(found, axis=0).max() > 1e-2


def test_an_image_is_read_once(model, processor, paths, encoded):
    states = ImageFeatureCache(model, processor.image_processor)
    assert states.missing([*paths[:3], paths[0]]) == paths[:3]
    first = states.read(paths[:3], read_images(processor.image_processor, paths[:3]))
    assert states.missing(paths[:5]) == paths[3:5]
    second = states.read([paths[1], paths[3], paths[1]], NOTHING)
    assert sum(encoded) == 4
    assert second.arrays.keys() == {paths[1], paths[3]}
    np.testing.assert_array_equal(second.arrays[paths[1]], first.arrays[paths[1]])


def test_the_longest_unused_go_when_there_is_no_room(model, processor, paths):
    size = next(
        iter(ImageFeatureCache(model, processor.image_processor).read(paths[:1], NOTHING).arrays.values())
    ).nbytes
    states = ImageFeatureCache(model, processor.image_processor, room=3 * size)
    states.read(paths[:3], NOTHING)
    states.read(paths[:1], NOTHING)
    states.read(paths[3:4], NOTHING)
    assert states.missing(paths[:4]) == paths[1:2]
    assert states.read(paths, NOTHING).arrays.keys() == set(paths)  # more than there is room for
    assert states.missing(paths) == paths[:7]


def test_what_cannot_be_read_is_told_each_time(model, processor, paths, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    states = ImageFeatureCache(model, processor.image_processor)
    for _ in range(2):
        found = states.read([paths[0], str(broken)], NOTHING)
        assert found.errors.keys() == {str(broken)}
        assert found.arrays.keys() == {paths[0], str(broken)}
