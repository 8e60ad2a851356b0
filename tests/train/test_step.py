"""The training step by itself: what its loss is, what it leaves alone, and what must not make a difference."""

import dataclasses
import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from idefics_jax import IdeficsConfig
from idefics_jax.nn.decoder import DecoderLayer
from idefics_jax.nn.layers import Vocabulary
from idefics_jax.nn.loss import IGNORED, next_token_loss
from idefics_jax.nn.rope import rotary_angles
from idefics_jax.nn.stack import KEEPABLE, rematerialize
from idefics_jax.parallel.mesh import constrain, make_mesh, on_mesh
from tests.support.small_runs import CONFIG, by_path, make_batch, make_rows, noting_gradients, start
from tests.support.tiny_tokenizer import IMAGE_TOKEN_ID
from train.config import KeptName, OptimizerConfig
from train.loss import chunked_sums, targets
from train.optimizer import make_optimizer, schedule
from train.step import as_multiplied, make_eval_step, means


@pytest.fixture(scope="module")
def plain():
    """A run of AdamW with a moving average; its step is compiled once for most of what is tested here."""
    adamw = make_optimizer(CONFIG.optimizer, CONFIG.steps)
    return start(made=noting_gradients(adamw), ema=0.75, z_loss=1e-2)


@pytest.fixture(scope="module")
def after(plain):
    """Its state after one step, and the step's metrics."""
    return plain.step(plain.state, plain.frozen, make_batch())


@pytest.fixture(scope="module")
def logits(plain):
    """The logits of all of a batch's positions, from the whole model and without segments."""

    @jax.jit
    def logits(part):
        return plain.objective.template.join(plain.state.params, plain.frozen)(
            part.input_ids,
            attention_mask=part.segment_ids > 0,
            position_ids=part.position_ids,
            pixel_values=plain.objective.pixels(part.pixel_values),
            image_attention_mask=part.image_attention_mask,
        ).logits

    return lambda batch: logits(jax.tree.map(lambda x: x[0], batch))


@pytest.fixture(scope="module")
def in_bfloat16():
    """A run in bfloat16, whose backbones are frozen in bfloat16 too."""
    adamw = make_optimizer(CONFIG.optimizer, CONFIG.steps)
    return start(made=noting_gradients(adamw), trainable="idefics", dtype="bfloat16", frozen_dtype="bfloat16")


def assert_same_gradients(ours, reference):
    """Of each tensor: within rounding errors of the whole."""
    largest = max(np.abs(gradient).max() for gradient in by_path(reference).values())
    for (path, gradient), expected in zip(by_path(ours).items(), by_path(reference).values(), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-6 * largest, err_msg=path)


def test_the_loss_and_the_z_loss_are_those_of_the_whole_logits(after, logits):
    batch = make_batch()
    _, metrics = after
    whole = logits(batch)
    np.testing.assert_allclose(metrics["loss"], next_token_loss(whole, batch.labels[0]), rtol=1e-6)
    counted = (batch.segment_ids[0] > 0) & (batch.input_ids[0] != IMAGE_TOKEN_ID)
    squares = np.square(jax.nn.logsumexp(whole, axis=-1))
    np.testing.assert_allclose(metrics["z_loss"], squares[counted].mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("additional", "chunks"), [(3, [1, 4, 7]), (0, [4]), pytest.param(3, [2, 3, 5, 6], marks=pytest.mark.slow)]
)
def test_chunks_make_no_difference_to_the_loss_and_its_gradient(additional, chunks):
    vocabulary = Vocabulary(jax.random.key(0), 20, additional, 8, std=1.0)
    hidden = jax.random.normal(jax.random.key(1), (3, 6, 8))
    labels = jax.random.randint(jax.random.key(2), (3, 6), 0, 20 + additional).at[0, 2:5].set(IGNORED)

    def whole(vocabulary, hidden):
        return next_token_loss(vocabulary.logits(hidden), labels)

    def in_chunks(vocabulary, hidden, chunk):
        wanted = targets(labels)
        sums = chunked_sums(hidden, vocabulary, wanted, jnp.ones(labels.shape, bool), chunk)
        return sums.cross_entropy / jnp.sum(wanted != IGNORED)

    expected, reference = jax.jit(jax.value_and_grad(whole, argnums=(0, 1)))(vocabulary, hidden)
    run = jax.jit(jax.value_and_grad(in_chunks, argnums=(0, 1)), static_argnums=2)
    for chunk in chunks:
        loss, gradients = run(vocabulary, hidden, chunk)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(reference), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("size", [pytest.param(20, marks=pytest.mark.slow), 22])
def test_the_loss_is_the_same_where_tensor_does_not_divide_the_vocabulary(size):
    hidden = jax.random.normal(jax.random.key(1), (2, 4, 8))
    labels = jax.random.randint(jax.random.key(2), (2, 4), 0, size + 3)

    def loss(mesh):
        with on_mesh(mesh):
            vocabulary = jax.jit(lambda key: Vocabulary(key, size, 3, 8, std=1.0))(jax.random.key(0))
            wanted = constrain(targets(labels), "batch")
            counted = constrain(jnp.ones(labels.shape, bool), "batch")
            sums = jax.jit(chunked_sums, static_argnums=4)(constrain(hidden, "batch"), vocabulary, wanted, counted, 2)
        return np.asarray(jnp.stack(list(sums)))

    np.testing.assert_allclose(loss(make_mesh(1, 2, 4)), loss(None), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["idefics", "full"])
def test_gradients_in_bfloat16_are_those_by_the_float32_weights(in_bfloat16, trainable):
    run = in_bfloat16 if trainable == "idefics" else start(made=noting_gradients(), dtype="bfloat16")
    batch = make_batch()
    state, _ = run.step(run.state, run.frozen, batch)

    @jax.grad
    def gradients(params):
        part = jax.tree.map(lambda x: x[0], batch)
        return means(run.objective, batch)(run.objective(params, run.frozen, part, None)).loss

    expected = by_path(jax.jit(gradients)(run.state.params))
    for (path, ours), theirs in zip(by_path(state.opt_state.gradients).items(), expected.values(), strict=True):
        assert ours.dtype == theirs.dtype == np.float32, path
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2**-8 * np.abs(theirs).max(), err_msg=path)


def test_matrices_are_multiplied_in_the_dtype_of_the_run(plain):
    for path, weight in by_path(jax.jit(as_multiplied, static_argnums=1)(plain.state.params, "bfloat16")).items():
        assert weight.dtype == ("bfloat16" if path.endswith("/kernel") else "float32"), path


@pytest.mark.parametrize(
    ("parts", "remat"),
    [
        (2, "full"),
        pytest.param(4, "none", marks=pytest.mark.slow),
        pytest.param(1, "dots", marks=pytest.mark.slow),
        pytest.param(1, ("query", "key", "value", "out", "gate", "up"), marks=pytest.mark.slow),
        pytest.param(1, ("up",), marks=pytest.mark.slow),
    ],
)
def test_neither_accumulation_nor_what_is_computed_twice_makes_a_difference(after, parts, remat):
    """The rows have unlike numbers of tokens to learn, so a mean of parts' means would differ."""
    whole, expected = after
    other = start(made=noting_gradients(), z_loss=1e-2, remat=remat)
    state, metrics = other.step(other.state, other.frozen, make_batch(parts=parts))
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    assert_same_gradients(state.opt_state.gradients, whole.opt_state.gradients)


def test_whatever_a_layer_computes_twice_its_gradients_are_the_same():
    config = IdeficsConfig.tiny()
    layer = jax.jit(lambda key: DecoderLayer(config, key))(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 6, config.hidden_size))
    rope = rotary_angles(jnp.broadcast_to(jnp.arange(6), (2, 6)), config.hidden_size // 4, config.rope_theta)
    remats = ["none", "dots", ("query", "key", "value", "out", "gate", "up"), ("up",)]

    def loss(layer, x, remat):
        return jnp.sum(jnp.square(rematerialize(lambda layer, x: layer(x, rope, None, None)[0], remat)(layer, x)))

    gradients = jax.jit(lambda *given: [jax.grad(loss, argnums=(0, 1))(*given, remat) for remat in remats])
    expected, *others = gradients(layer, x)
    for other in others:
        for ours, theirs in zip(jax.tree.leaves(other), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())


def test_what_is_kept_has_a_known_name():
    assert get_args(KeptName) == KEEPABLE
    with pytest.raises(ValueError, match=r"query, key, value.*not \('key', 'keys'\)"):
        rematerialize(lambda x: x, ("key", "keys"))


def test_with_segment_masks_packed_documents_are_as_if_alone(logits):
    data = dataclasses.replace(CONFIG.data, segment_masks=True)
    config = dataclasses.replace(CONFIG, data=data)
    run = start(config)
    documents = ((8, 1), (7, 0), (9, 1))
    (packed,) = make_rows([documents], config)
    sums = jax.jit(make_eval_step(run.objective))
    together, count = sums(run.state.params, run.frozen, make_batch([packed]))
    alone = []
    for segment in range(1, 4):
        here = packed.segment_ids == segment
        rest = 24 - here.sum()
        images = packed.image_attention_mask[here].any(axis=0)
        row = packed._replace(
            input_ids=np.pad(packed.input_ids[here], (0, rest)),
            labels=np.pad(packed.labels[here], (0, rest), constant_values=IGNORED),
            segment_ids=np.pad(np.ones(24 - rest, np.int32), (0, rest)),
            position_ids=np.pad(np.arange(24 - rest, dtype=np.int32), (0, rest), constant_values=1),
            image_attention_mask=np.pad(packed.image_attention_mask[here], ((0, rest), (0, 0))),
            pixel_values=np.where(images[:, None, None, None], packed.pixel_values, 0),
        )
        alone.append(sums(run.state.params, run.frozen, make_batch([row])))
    np.testing.assert_allclose(together, sum(loss for loss, _ in alone), rtol=1e-5)
    assert count == sum(tokens for _, tokens in alone)

    batch = make_batch([packed, *make_rows()[1:]])  # without the masks they see each other, which the loss shows
    seen = next_token_loss(logits(batch)[:1], batch.labels[0, :1]) * count
    assert abs(float(seen) - float(together)) > 1e-4


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(plain, after):
    run, (state, _) = plain, after
    params = jax.tree.map(jnp.copy, state.params)
    params["model"]["decoder"]["norm"]["scale"] = params["model"]["decoder"]["norm"]["scale"].at[3].set(jnp.nan)
    bad = state._replace(params=params)
    once, metrics = run.step(bad, run.frozen, make_batch())
    twice, _ = run.step(once, run.frozen, make_batch())
    assert not math.isfinite(metrics["loss"])
    for name in ("params", "opt_state", "ema"):
        for new, old in zip(jax.tree.leaves(getattr(twice, name)), jax.tree.leaves(getattr(bad, name)), strict=True):
            np.testing.assert_array_equal(new, old)
    assert (twice.step, twice.skipped, twice.skipped_in_row) == (3, 2, 2)
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (1, 1)

    mended, metrics = run.step(twice._replace(params=state.params), run.frozen, make_batch())
    assert (mended.step, mended.skipped, mended.skipped_in_row) == (4, 2, 0)
    assert math.isfinite(metrics["loss"])
    count = optax.tree.get_all_with_path(mended.opt_state, "count")
    assert {int(value) for _, value in count} == {2}  # the schedule goes by steps that changed something


def test_the_moving_average(plain):
    run = plain
    np.testing.assert_array_equal(run.state.ema["head"]["table"], run.state.params["head"]["table"])
    state, expected = run.state, by_path(run.state.params)
    for _ in range(2):
        state, _ = run.step(state, run.frozen, make_batch())
        expected = {path: 0.75 * expected[path] + 0.25 * new for path, new in by_path(state.params).items()}
    for path, average in by_path(state.ema).items():
        np.testing.assert_allclose(average, expected[path], atol=1e-6, err_msg=path)


def test_what_is_frozen_has_no_optimizer_state_and_keeps_its_dtype(in_bfloat16):
    run = in_bfloat16
    trained, frozen = by_path(run.state.params), by_path(run.frozen)
    assert {array.dtype.name for array in trained.values()} == {"float32"}
    assert {array.dtype.name for array in frozen.values()} == {"bfloat16"}
    assert "model/decoder/groups/layers/mlp/up/kernel" in frozen
    assert "model/decoder/groups/cross/mlp/up/kernel" in trained
    moments = sum(leaf.size for leaf in jax.tree.leaves(run.state.opt_state.inner) if leaf.ndim)
    assert moments == 2 * sum(array.size for array in trained.values() if array.ndim)


def test_a_step_moves_all_that_trains(plain, after):
    """But for the norm of pooled image states, which no logit goes through."""
    before, (state, _) = by_path(plain.state.params), after
    moved = {path for path, array in by_path(state.params).items() if np.any(array != before[path])}
    assert before.keys() - moved == {"model/vision/post_norm/scale", "model/vision/post_norm/bias"}


#: Name, learning rate and options of optimizers.
OPTIMIZERS = (
    ("adamw", 1e-3, {"weight_decay": 0.1}),
    ("adamw", 1e-3, {"first_moment": "bfloat16", "schedule": "cosine"}),
    ("adafactor", 1e-2, {}),
    ("lion", 1e-3, {"weight_decay": 0.1}),
    ("sgd", 0.3, {"clip": None}),
    ("adam", 1e-3, {}),
)


def assert_dtypes_of_moments(state, config):
    """Of AdamW: the first moment's as configured, the second's float32."""
    if config.name == "adamw":
        ((_, first),) = optax.tree.get_all_with_path(state, "mu")
        ((_, second),) = optax.tree.get_all_with_path(state, "nu")
        assert {leaf.dtype.name for leaf in jax.tree.leaves(first)} == {config.first_moment}
        assert {leaf.dtype.name for leaf in jax.tree.leaves(second)} == {"float32"}


@pytest.mark.parametrize(("name", "learning_rate", "options"), OPTIMIZERS)
def test_every_optimizer_lowers_the_loss_of_a_linear_map(name, learning_rate, options):
    config = OptimizerConfig(name=name, learning_rate=learning_rate, **{"schedule": "constant"} | options)
    optimizer = make_optimizer(config, 100)
    x, y, kernel = (
        jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate([(8, 128), (8, 130), (128, 130)])
    )
    params = {"map": {"kernel": 0.1 * kernel, "bias": jnp.zeros(130)}}

    @jax.jit
    def step(params, state):
        def loss(params):
            return jnp.mean(jnp.square(x @ params["map"]["kernel"] + params["map"]["bias"] - y))

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = jax.jit(optimizer.init)(params), []
    for _ in range(4):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[-1] > 1e-3
    assert_dtypes_of_moments(state, config)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "learning_rate", "options"), OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(name, learning_rate, options):
    config = OptimizerConfig(name=name, learning_rate=learning_rate, **{"schedule": "constant"} | options)
    run = start(trainable="heads", optimizer=config)
    state, losses = run.state, []
    for _ in range(4):
        state, metrics = run.step(state, run.frozen, make_batch())
        losses.append(float(metrics["loss"]))
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[-1] > 1e-3
    assert metrics["skipped"] == 0
    assert_dtypes_of_moments(state.opt_state, config)


def test_schedules():
    def rates(steps, **options):
        rate = schedule(OptimizerConfig(learning_rate=2.0, final_learning_rate=0.5, **options), 100)
        return [float(rate(step)) for step in steps]

    steps = [0, 5, 10, 55, 99, 100, 1000]
    np.testing.assert_allclose(rates(steps, schedule="constant", warmup_steps=10), [0, 1, 2, 2, 2, 2, 2])
    linear = [0, 1, 2, 1.25, 2 - 1.5 * 89 / 90, 0.5, 0.5]
    np.testing.assert_allclose(rates(steps, schedule="linear", warmup_steps=10), linear, rtol=1e-6)
    cosine = [0, 1, 2, 1.25, 0.5 + 0.75 * (1 + math.cos(math.pi * 89 / 90)), 0.5, 0.5]
    np.testing.assert_allclose(rates(steps, schedule="cosine", warmup_steps=10), cosine, rtol=1e-6)
    short = rates([0, 20, 40, 60], schedule="linear", warmup_steps=0, decay_steps=40)
    np.testing.assert_allclose(short, [2, 1.25, 0.5, 0.5])
    assert schedule(OptimizerConfig(learning_rate=0.0), 10)(5) == 0


@pytest.mark.slow
def test_dropout_is_by_key_and_in_training_only():
    run = start(made=noting_gradients(), dropout=0.3)

    def loss(state):
        return float(run.step(state, run.frozen, make_batch())[1]["loss"])

    first = loss(run.state)
    assert first == loss(run.state)
    assert first != loss(run.state._replace(step=jnp.int32(1)))  # the key is each step's own
    halves = make_rows()[:1] * 2  # nor do parts of a step drop the same
    whole, _ = run.step(run.state, run.frozen, make_batch(halves[:1]))
    parts, _ = run.step(run.state, run.frozen, make_batch(halves, parts=2))
    assert np.any(by_path(whole.opt_state.gradients)["head/table"] != by_path(parts.opt_state.gradients)["head/table"])

    total, count = jax.jit(make_eval_step(run.objective))(run.state.params, run.frozen, make_batch())
    without = start(made=noting_gradients())
    _, metrics = without.step(without.state, without.frozen, make_batch())
    np.testing.assert_allclose(total / count, metrics["loss"], rtol=1e-6)
    assert abs(first - float(metrics["loss"])) > 1e-3
