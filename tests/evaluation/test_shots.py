"""Which shots are shown: the same ones whatever else is asked, and never the query itself."""

import jax.numpy as jnp
import numpy as np

from idefics_jax.evaluation.features import image_features
from idefics_jax.evaluation.shots import at_random, first, generator, nearest


def drawn(id, count=4, seed=0, left_out=None, support=10):
    return at_random(count, support, left_out, generator(seed, id, "4 shots"))


def test_random_shots_depend_on_the_query_and_the_seed_alone():
    assert [drawn(id) for id in ("a", 7, "b")] == [drawn("a"), drawn(7), drawn("b")]
    assert drawn("a") != drawn("b")
    assert drawn("a") != drawn("a", seed=1)
    assert drawn(7) == [7, 1, 9, 3]  # on every machine


def test_random_shots_are_different_ones_and_all_equally_likely():
    counts = np.zeros(10, int)
    for id in range(1000):
        chosen = drawn(id, left_out=3)
        assert len(set(chosen)) == 4
        counts[chosen] += 1
    assert counts[3] == 0
    others = np.delete(counts, 3)
    assert np.abs(others - 4000 / 9).max() < 5 * np.sqrt(4000 / 9)
    assert sorted(drawn("a", 9, left_out=0)) == list(range(1, 10))


def test_the_first_examples():
    assert first(2, 10, None) == [0, 1]
    assert [first(2, 10, left_out) for left_out in (0, 1, 2)] == [[1, 2], [0, 2], [0, 1]]


def test_the_nearest_come_last():
    support = np.eye(4, dtype=np.float32)
    query = np.array([0.1, 0.7, 0.5, -0.5], np.float32)
    assert nearest(3, support, query, None) == [0, 2, 1]
    assert nearest(2, support, query, 1) == [0, 2]


def test_features_are_the_vision_towers_and_are_kept(model, processor, photos, tmp_path):
    paths = [str(photos / f"{number}.png") for number in range(12)]
    done = []
    found, errors = image_features(model, processor.image_processor, paths, tmp_path, done.append)
    assert not errors
    assert sum(done) == 12
    tower = model.model.vision
    pooled = np.asarray(tower.pooled(tower(jnp.asarray(processor.image_processor.preprocess(paths)))))
    np.testing.assert_allclose(found, pooled / np.linalg.norm(pooled, axis=1, keepdims=True), atol=1e-5)
    assert np.ptp(found @ found.T) > 1e-3
    # What was kept is taken, what was not is made.
    kept = np.load(tmp_path / "features.npy", mmap_mode="r+")
    kept[:5] = 1
    kept[5:] = np.nan
    kept.flush()
    done.clear()
    again, _ = image_features(model, processor.image_processor, paths, tmp_path, done.append)
    np.testing.assert_array_equal(again[:5], 1)
    np.testing.assert_allclose(again[5:], found[5:], atol=1e-6)
    assert done == [5, 7]
    others, _ = image_features(model, processor.image_processor, paths[1:], tmp_path)
    np.testing.assert_allclose(others, found[1:], atol=1e-6)


def test_an_image_that_cannot_be_read_has_no_features(model, processor, photos, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    found, errors = image_features(model, processor.image_processor, [str(photos / "0.png"), str(broken)], None)
    assert errors.keys() == {str(broken)}
    assert found[0].any()
    assert not found[1].any()


def test_among_equals_the_first_are_nearest():
    assert nearest(3, np.ones((3, 2), np.float32), np.ones(2, np.float32), None) == [2, 1, 0]
