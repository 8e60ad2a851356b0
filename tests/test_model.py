"""The forward pass against the reference, and the properties that hold it together."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from idefics_jax import IdeficsConfig, IdeficsForVisionText2Text, IdeficsModel
from idefics_jax.nn.decoder import GatedCrossAttentionLayer
from tests.reference import model as reference_model
from tests.reference.generation import random_model
from tests.reference.model import ALONE, CASES, IMAGE_STATES, inputs
from tests.reference.record import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def published(folder):
    return IdeficsForVisionText2Text.from_pretrained(reference_model.checkpoint("published", folder), stacked=True)


@pytest.fixture(scope="module")
def recorded():
    return load("model")


def run(case, folder, *, stacked=False, dtype="float32", **options):
    """The output, in numpy's arrays: what is picked from those is not compiled."""
    directory = reference_model.checkpoint(case, folder)
    model = IdeficsForVisionText2Text.from_pretrained(directory, stacked=stacked, dtype=dtype)
    batch = inputs(case) | options
    return jax.device_get(model(**batch, interpolate_pos_encoding=case == "interpolated"))


def real(case):
    return inputs(case)["attention_mask"].astype(bool)


def error(ours, reference):
    """The largest difference as a part of the largest reference value."""
    return np.max(np.abs(np.asarray(ours, np.float32) - reference)) / np.max(np.abs(reference))


def cases(stacked):
    """Of which the default run takes one of each kind, and listed layers once."""
    left_out = (*ALONE, "interval 4") if stacked else [case for case in CASES if case != "published"]
    return [
        pytest.param(
            case,
            stacked,
            marks=pytest.mark.slow if case in left_out else (),
            id=f"{case}-{('listed', 'stacked')[stacked]}",
        )
        for case in CASES
    ]


@pytest.mark.parametrize(("case", "stacked"), cases(stacked=False) + cases(stacked=True))
def test_logits_and_loss(case, stacked, folder, recorded):
    output = run(case, folder, stacked=stacked, labels=inputs(case)["input_ids"])
    assert output.logits.dtype == jnp.float32
    assert error(output.logits[real(case)], recorded[f"{case}: logits"][real(case)]) < 1e-5
    if case in IMAGE_STATES:
        assert error(output.image_hidden_states[:1], recorded[f"{case}: image_hidden_states"]) < 1e-5
    np.testing.assert_allclose(output.loss, recorded[f"{case}: loss"], rtol=1e-5)


@pytest.mark.parametrize("stacked", [pytest.param(False, marks=pytest.mark.slow), True], ids=["listed", "stacked"])
def test_hidden_states_and_attentions_of_every_layer(stacked, folder, recorded):
    case = "published"
    output = run(case, folder, stacked=stacked, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 5
    assert len(output.attentions) == 4
    for layer in range(4):
        state, weights = (recorded[f"{case}: {kind} {layer}"] for kind in ("hidden_states", "attentions"))
        assert error(output.hidden_states[layer + 1][real(case)], state[real(case)]) < 1e-5
        ours = output.attentions[layer].swapaxes(1, 2)[real(case)]
        np.testing.assert_allclose(ours, weights.swapaxes(1, 2)[real(case)], atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize(("case", "stacked"), cases(stacked=False))
def test_live_parity(case, stacked, folder):
    pytest.importorskip("torch")
    _, batch, reference = reference_model.run_torch(case, folder)
    output = run(case, folder, stacked=stacked, output_hidden_states=True, labels=inputs(case)["input_ids"])
    assert error(output.logits[real(case)], reference.logits.numpy()[real(case)]) < 1e-5
    np.testing.assert_allclose(output.loss, reference_model.reference_loss(reference.logits, batch), rtol=1e-5)
    for ours, theirs in zip(output.hidden_states[1:], reference.hidden_states[1:], strict=True):
        assert error(ours[real(case)], theirs.numpy()[real(case)]) < 1e-5


def test_bfloat16_is_as_close_to_float32_as_pytorchs(folder, recorded):
    rounded, exact = run("published", folder, stacked=True, dtype="bfloat16").logits, recorded["published: logits"]
    difference = np.asarray(rounded - exact)[real("published")]
    ours = np.sqrt(np.mean(difference**2) / np.mean(exact[real("published")] ** 2))
    assert ours <= recorded["published: bfloat16 error"]


@pytest.mark.parametrize("case", ["published", "no resampler"])
def test_precomputed_image_states(case, folder, published):
    model = published
    if case != "published":
        model = IdeficsForVisionText2Text.from_pretrained(reference_model.checkpoint(case, folder), stacked=True)
    batch = inputs(case)
    expected = model(**batch)
    pixels = batch.pop("pixel_values")
    patches = jax.jit(lambda tower, x: tower(x))(model.model.vision, pixels.reshape(-1, *pixels.shape[2:]))
    patches = np.asarray(patches).reshape(*pixels.shape[:2], *patches.shape[1:])
    states = {"image_encoder_embeddings": patches}
    np.testing.assert_allclose(model(**batch, **states).logits, expected.logits, atol=1e-5)
    if case == "published":
        states = {"perceiver_embeddings": expected.image_hidden_states}
        np.testing.assert_allclose(model(**batch, **states).logits, expected.logits, atol=1e-5)
    else:
        with pytest.raises(ValueError, match="use_resampler"):
            model(**batch, perceiver_embeddings=patches)


def test_inputs_embeds_and_position_ids(published):
    batch = inputs("published")
    expected = np.asarray(published(**batch).logits)
    positions = np.maximum(np.cumsum(batch["attention_mask"], -1) - 1, 0)
    embeds = jax.jit(published.model.embed)(batch.pop("input_ids"))
    ours = np.asarray(published(**batch, inputs_embeds=embeds, position_ids=positions).logits)
    np.testing.assert_allclose(ours[real("published")], expected[real("published")], atol=1e-5)


def test_tokens_before_the_first_image_do_not_feel_it(published):
    """transformers issue 26428: a softmax over nothing let images leak into tokens before them, NaN included."""
    batch = inputs("published")
    expected = np.asarray(published(**batch).logits)
    other = np.asarray(published(**batch | {"pixel_values": 9 * batch["pixel_values"] + 1}).logits)
    before, after = real("published").copy(), real("published").copy()
    before[:, 4:], after[:, :4] = False, False
    np.testing.assert_array_equal(expected[before], other[before])
    assert np.abs(expected[after] - other[after]).max() > 0.1
    assert np.isfinite(expected).all()


def test_rows_do_not_feel_each_other(published):
    batch = inputs("published")
    together = np.asarray(published(**batch).logits)
    for row in range(3):
        alone = published(**{name: value[row : row + 1] for name, value in batch.items()}).logits
        keep = real("published")[row]
        np.testing.assert_allclose(np.asarray(alone)[0][keep], together[row][keep], atol=1e-5)


@pytest.mark.parametrize(("initializer", "alphas"), [("zeros", 0), ("ones", 1)])
def test_gates_start_where_the_config_says(initializer, alphas):
    config = dataclasses.replace(IdeficsConfig.tiny(), alpha_initializer=initializer, alpha_type="vector")

    @jax.jit
    def gates(key):
        layer = GatedCrossAttentionLayer(config, key)
        return layer.alpha_attention[...], layer.alpha_mlp[...]

    np.testing.assert_array_equal(gates(jax.random.key(0)), np.full((2, config.hidden_size), alphas))


@pytest.mark.parametrize("stacked", [pytest.param(False, marks=pytest.mark.slow), True], ids=["listed", "stacked"])
def test_closed_gates_leave_a_plain_llama(stacked):
    """With alphas at zero, cross-attention and its MLP change nothing, bit for bit."""
    config = IdeficsConfig.tiny()
    model = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if "alpha" in jax.tree_util.keystr(path) else leaf,
        random_model(config, stacked=stacked),
    )
    random = np.random.default_rng(1)
    ids = random.integers(3, config.vocab_size, (2, 8), np.int32)
    size = config.vision_config.image_size
    pixels = random.standard_normal((2, 1, size, size, 3), np.float32)
    seen = model(ids, pixel_values=pixels, image_attention_mask=np.ones((2, 8, 1), np.int32))

    @jax.jit
    def llama(model, ids):
        from idefics_jax.nn.masks import causal_mask
        from idefics_jax.nn.rope import rotary_angles
        from idefics_jax.nn.stack import scan_layers

        head_dim = config.hidden_size // config.num_attention_heads
        rope = rotary_angles(jnp.broadcast_to(jnp.arange(8), (2, 8)), head_dim, config.rope_theta)
        mask = causal_mask(jnp.ones((2, 8), bool))

        def group_body(x, group):
            return scan_layers(lambda x, layer: (layer(x, rope, mask, None)[0], ()), x, group.layers)

        x, _ = scan_layers(group_body, model.model.embed(ids), model.model.decoder.groups)
        return model.logits(model.model.decoder.norm(x))

    np.testing.assert_array_equal(seen.logits, llama(model, ids))


@pytest.mark.torch
def test_closed_gates_equal_transformers_llama(folder):
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    changes = {"alpha_initializer": "zeros", "additional_vocab_size": 0}
    directory = reference_model.save_random_checkpoint(folder / "llama", changes)
    model = IdeficsForVisionText2Text.from_pretrained(directory)
    for group in model.model.decoder.groups:
        for gate in (group.cross.alpha_attention, group.cross.alpha_mlp):
            gate[...] = jnp.zeros(())
    config = model.config
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            rms_norm_eps=config.rms_norm_eps,
        )
    ).eval()
    from safetensors.torch import load_file

    tensors = load_file(directory / "model.safetensors")
    llama.load_state_dict({name: tensors[name] for name in llama.state_dict()})
    batch = inputs("no additional vocabulary")
    with torch.no_grad():
        ids, mask = (torch.tensor(batch[name]) for name in ("input_ids", "attention_mask"))
        expected = llama(input_ids=ids, attention_mask=mask).logits.numpy()
    keep = batch["attention_mask"].astype(bool)
    assert error(model(**batch).logits[keep], expected[keep]) < 1e-5


def test_stacked_programs_do_not_grow_with_depth():
    def program(depth, stacked, interval=4):
        config = dataclasses.replace(IdeficsConfig.tiny(), num_hidden_layers=depth, cross_layer_interval=interval)
        model = IdeficsForVisionText2Text.abstract(config, stacked=stacked)
        size = config.vision_config.image_size
        arguments = {
            "input_ids": jax.ShapeDtypeStruct((1, 8), jnp.int32),
            "pixel_values": jax.ShapeDtypeStruct((1, 1, size, size, 3), jnp.float32),
            "image_attention_mask": jax.ShapeDtypeStruct((1, 8, 1), jnp.int32),
        }
        return len(jax.jit(lambda model, batch: model(**batch)).lower(model, arguments).as_text().splitlines())

    assert program(40, stacked=True) == program(4, stacked=True)
    assert program(2, stacked=False, interval=1) > program(1, stacked=False, interval=1)


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("idefics_9b", 8_929_679_632),
        ("idefics_9b_instruct", 8_929_687_824),
        ("idefics_80b", 79_967_843_624),
        ("idefics_80b_instruct", 79_967_860_008),
    ],
)
def test_parameter_counts_of_the_published_models(preset, count):
    model = IdeficsForVisionText2Text.abstract(getattr(IdeficsConfig, preset)(), stacked=True)
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == count


def test_bad_inputs(published):
    batch = inputs("published")
    pixels = batch["pixel_values"]
    with pytest.raises(ValueError, match="interpolate_pos_encoding=True"):
        published(**batch | {"pixel_values": np.zeros((3, 2, 42, 35, 3), np.float32)})
    with pytest.raises(ValueError, match="channels-last"):
        published(**batch | {"pixel_values": pixels.transpose(0, 1, 4, 2, 3)})
    with pytest.raises(ValueError, match="exactly one of pixel_values"):
        published(**batch, perceiver_embeddings=np.zeros((3, 2, 5, 24), np.float32))
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        published(**batch, inputs_embeds=np.zeros((3, 10, 32), np.float32))
    with pytest.raises(ValueError, match="image_attention_mask"):
        published(**{name: value for name, value in batch.items() if name != "image_attention_mask"})


def test_another_number_of_images_than_the_mask_says(published, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users do not have the tests' checks
    batch = inputs("published")
    with pytest.raises(ValueError, match="is for 2 images, and 1 were given"):
        published(**batch | {"pixel_values": batch["pixel_values"][:, :1]})


def test_the_headless_model(published, folder):
    model = IdeficsModel.from_pretrained(folder / "published", stacked=True)
    output = model(**inputs("published"))
    expected = published(**inputs("published")).logits
    np.testing.assert_allclose(jax.jit(published.logits)(output.last_hidden_state), expected, atol=1e-5)
    assert output.logits is None
