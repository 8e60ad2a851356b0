"""The count of FLOPs against published parameter counts, and against what XLA counts in our own programs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from idefics_jax import IdeficsConfig, IdeficsForVisionText2Text
from idefics_jax.checkpoints import hf_names
from idefics_jax.cost.flops import flops_by_part
from train.flops import peak_flops, step_flops

#: Parameters of the published checkpoints, by part
PARAMETERS = {
    "idefics_9b": {
        "decoder": 6_476_267_520,
        "cross_attention": 1_434_519_568,
        "head": 131_080_192,
        "vision": 630_766_080,
    },
    "idefics_80b": {"decoder": 64_761_364_480, "cross_attention": 13_925_422_120, "head": 262_160_384},
}


def everything(path):
    return True


def nothing(path):
    return False


def new_modules(path):
    return "/cross/" in path or "/resampler/" in path


@pytest.mark.parametrize("name", PARAMETERS)
def test_six_per_parameter_and_token_when_all_of_it_trains(name):
    tokens = 4096
    rows_of_one = {"rows": tokens, "sequence_length": 1}  # attention costs next to nothing
    config, known = getattr(IdeficsConfig, name)(), PARAMETERS[name]
    parts = flops_by_part(config, images=0, trainable=everything, **rows_of_one)
    assert parts.decoder == pytest.approx(6 * known["decoder"] * tokens, rel=0.01)
    assert parts.head == pytest.approx(6 * known["head"] * tokens, rel=0.01)
    # Without images the keys and values of images (1280 wide) are not computed.
    groups = config.num_hidden_layers // config.cross_layer_interval
    of_tokens = known["cross_attention"] - groups * 2 * 1280 * config.hidden_size
    assert parts.cross_attention == pytest.approx(6 * of_tokens * tokens, rel=0.01)
    assert parts.vision == parts.resampler == 0


def test_an_image_costs_a_vision_tower_of_257_positions():
    parts = flops_by_part(IdeficsConfig.idefics_9b(), rows=1, sequence_length=1, images=1, trainable=nothing)
    attention = 32 * 2 * 2 * 257**2 * 1280
    assert parts.vision == pytest.approx(2 * PARAMETERS["idefics_9b"]["vision"] * 257 + attention, rel=0.01)


def test_causal_attention_is_halved():
    config = IdeficsConfig.idefics_9b()
    short, long = (
        flops_by_part(config, rows=rows, sequence_length=2048 // rows, images=0, trainable=nothing) for rows in (2, 1)
    )
    assert long.decoder - short.decoder == 32 * 2 * 2 * 4096 * (2048**2 - 2 * 1024**2) / 2


def test_frozen_weights_cost_no_gradient_of_their_own():
    config = IdeficsConfig.idefics_9b()
    sizes = {"rows": 4, "sequence_length": 256, "images": 8}
    forward, full, idefics = (
        flops_by_part(config, trainable=trainable, **sizes) for trainable in (nothing, everything, new_modules)
    )
    assert idefics.vision == forward.vision  # nothing that trains comes before it
    assert idefics.head == 2 * forward.head
    assert idefics.decoder == pytest.approx(2 * forward.decoder, rel=0.01)  # but scores' backward pass is twice theirs
    assert idefics.cross_attention == full.cross_attention
    assert full.decoder == pytest.approx(3 * forward.decoder, rel=1e-6)
    assert step_flops(config, trainable=new_modules, **sizes) == sum(idefics)


def test_a_trained_head_alone_needs_no_backward_pass_below_it():
    sizes = {"rows": 1, "sequence_length": 128, "images": 1}
    config = IdeficsConfig.idefics_9b()
    forward = flops_by_part(config, trainable=nothing, **sizes)
    head = flops_by_part(config, trainable=lambda path: path.startswith("head/"), **sizes)
    assert head == forward._replace(head=2 * forward.head)


def test_gradients_flow_back_to_the_first_adapter():
    sizes = {"rows": 1, "sequence_length": 128, "images": 1}
    config = IdeficsConfig.idefics_9b()
    adapters = {f"model/decoder/groups/layers/attention/{x}/lora/{ab}" for x in "qkv" for ab in "ab"}
    forward = flops_by_part(config, trainable=nothing, **sizes)
    lora = flops_by_part(config, trainable=lambda path: path in adapters, **sizes)
    assert (lora.vision, lora.resampler, lora.head) == (forward.vision, forward.resampler, 2 * forward.head)
    assert lora.decoder == pytest.approx(2 * forward.decoder, rel=0.02)
    assert 1.8 * forward.cross_attention < lora.cross_attention < 2 * forward.cross_attention  # the first needs none


def test_without_a_resampler_text_looks_at_every_patch():
    sizes = {"rows": 1, "sequence_length": 64, "images": 1, "trainable": nothing}
    config = IdeficsConfig.idefics_9b()
    with_it, without = (flops_by_part(dataclasses.replace(config, use_resampler=use), **sizes) for use in (True, False))
    assert without.resampler == 0
    more = 257 - 64
    assert without.cross_attention - with_it.cross_attention == 8 * more * (2 * 2 * 1280 * 4096 + 2 * 2 * 64 * 4096)


SUBSETS = {
    "nothing": nothing,
    "everything": everything,
    "new modules": new_modules,
    "queries of the text": lambda path: "groups/layers/attention/q/" in path,
}


@pytest.mark.parametrize("subset", SUBSETS)
def test_xla_counts_about_the_same(subset):
    """XLA adds norms, activation functions and the masked half of the scores, which are small here."""
    tiny, trainable = IdeficsConfig.tiny(), SUBSETS[subset]
    config = dataclasses.replace(
        tiny,
        hidden_size=256,
        intermediate_size=320,
        num_hidden_layers=2,
        vision_config=dataclasses.replace(
            tiny.vision_config, embed_dim=128, intermediate_size=256, num_hidden_layers=1
        ),
        perceiver_config=dataclasses.replace(tiny.perceiver_config, resampler_head_dim=64, resampler_depth=1),
    )
    # Layers in a list: XLA counts the body of a scan once, however often it runs.
    model = jax.eval_shape(lambda: IdeficsForVisionText2Text(config, jax.random.key(0)))
    leaves, structure = jax.tree.flatten(model)
    paths = ["/".join(p for p in w.path.split("/") if not p.isdigit()) for w in hf_names.weights(model, config)]
    trains = [trainable(path) for path in paths]

    def loss(trained, frozen, ids, pixels):
        trained, frozen = iter(trained), iter(frozen)
        model = jax.tree.unflatten(structure, [next(trained if is_trained else frozen) for is_trained in trains])
        sees = jnp.ones((*ids.shape, pixels.shape[1]), bool)
        return model(input_ids=ids, labels=ids, pixel_values=pixels, image_attention_mask=sees).loss

    trained, frozen = (
        [leaf for leaf, is_trained in zip(leaves, trains, strict=True) if is_trained is wanted]
        for wanted in (True, False)
    )
    function = jax.value_and_grad(loss) if trained else loss
    ids, pixels = jax.ShapeDtypeStruct((2, 24), jnp.int32), jax.ShapeDtypeStruct((2, 1, 28, 28, 3), jnp.float32)
    counted = jax.jit(function).lower(trained, frozen, ids, pixels).cost_analysis()["flops"]
    ours = step_flops(config, rows=2, sequence_length=24, images=2, trainable=trainable)
    assert ours == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("cpu", None),
    ],
)
def test_peaks(kind, peak):
    assert peak_flops(kind) == peak
