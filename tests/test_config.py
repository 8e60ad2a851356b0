"""Every published `config.json` reads, what is not implemented is refused by name, and transformers reads ours."""

import dataclasses
import json
from pathlib import Path

import pytest

from idefics_jax.config import ACTIVATION_NAMES, IdeficsConfig, IdeficsPerceiverConfig, IdeficsVisionConfig

# Written by transformers itself, from release to release; the two without a version are what the hub held early on.
CONFIGS = Path(__file__).parent / "configs"
PRESETS = ("tiny", "idefics_9b", "idefics_9b_instruct", "idefics_80b", "idefics_80b_instruct")
VECTOR = IdeficsConfig(
    vocab_size=500,
    hidden_size=64,
    num_hidden_layers=6,
    num_attention_heads=4,
    alpha_initializer="ones",
    alpha_type="vector",
    cross_layer_interval=2,
    eos_token_id=(2, 7),
    tie_word_embeddings=True,
    dtype="float16",
    vision_config=IdeficsVisionConfig(
        embed_dim=32, image_size=30, intermediate_size=37, patch_size=2, num_hidden_layers=5, num_attention_heads=4
    ),
)
TINY_RANDOM = IdeficsConfig(
    additional_vocab_size=2,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    alpha_initializer="ones",
    alpha_type="vector",
    freeze_text_layers=False,
    freeze_vision_layers=False,
    use_resampler=True,
    max_position_embeddings=128,
    dtype="float16",
    vision_config=VECTOR.vision_config,
    perceiver_config=IdeficsPerceiverConfig(
        resampler_n_latents=16, resampler_depth=2, resampler_n_heads=2, resampler_head_dim=8
    ),
)
EARLY = dataclasses.replace(IdeficsConfig.idefics_80b_instruct(), additional_vocab_size=2)
EXPECTED = {
    "9b-instruct": IdeficsConfig.idefics_9b_instruct(),
    "9b-instruct-full": IdeficsConfig.idefics_9b_instruct(),
    "vector": VECTOR,
    "class-defaults": IdeficsConfig(),
    "80b-instruct-early-flat": EARLY,
    "tiny-random-idefics": TINY_RANDOM,
}


def files():
    return sorted(path.stem for path in CONFIGS.glob("*.json"))


@pytest.mark.parametrize("name", files())
def test_a_published_config_reads(name, tmp_path):
    (tmp_path / "config.json").write_bytes((CONFIGS / f"{name}.json").read_bytes())
    assert IdeficsConfig.from_pretrained(tmp_path) == EXPECTED[name.partition("-transformers-")[0]]


def test_every_layout_is_covered():
    assert {name.partition("-transformers-")[0] for name in files()} == set(EXPECTED)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_survives_saving(preset, tmp_path):
    config = getattr(IdeficsConfig, preset)()
    config.save_pretrained(tmp_path / "new" / "directory")
    assert IdeficsConfig.from_pretrained(tmp_path / "new" / "directory") == config
    assert hash(config) == hash(getattr(IdeficsConfig, preset)())


def test_the_presets_are_the_published_models():
    base, instruct = IdeficsConfig.idefics_9b(), IdeficsConfig.idefics_9b_instruct()
    large = IdeficsConfig.idefics_80b()
    assert (base.additional_vocab_size, instruct.additional_vocab_size) == (2, 3)
    assert (base.rms_norm_eps, large.rms_norm_eps) == (1e-6, 1e-5)
    assert (base.num_hidden_layers, large.num_hidden_layers) == (32, 80)
    assert (large.hidden_size, large.intermediate_size, large.num_attention_heads) == (8192, 22016, 64)
    for config in (base, large):
        assert config.cross_layer_interval == 4
        assert config.use_resampler
        assert config.qk_layer_norms
        assert config.perceiver_config == IdeficsPerceiverConfig(qk_layer_norms_perceiver=True)
        assert config.vision_config == IdeficsVisionConfig(embed_dim=1280)
        assert config.dtype == "bfloat16"
        assert not config.freeze_text_layers
    assert IdeficsConfig() not in (base, instruct)


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        IdeficsConfig.tiny().hidden_size = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, IdeficsConfig()),
        ({"rope_theta": 500000}, IdeficsConfig(rope_theta=5e5)),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 7.0},
            IdeficsConfig(rope_theta=5e5),
        ),
        ({"rope_scaling": {"type": "default"}}, IdeficsConfig()),
        ({"torch_dtype": "float32"}, IdeficsConfig(dtype="float32")),
        ({"torch_dtype": "float32", "dtype": "bfloat16"}, IdeficsConfig()),
        ({"use_resampler": True}, IdeficsConfig(use_resampler=True)),
        ({"perceiver_config": {"use_resampler": True}}, IdeficsConfig(use_resampler=True)),
        ({"use_resampler": False, "perceiver_config": {"use_resampler": True}}, IdeficsConfig()),
        ({"use_resampler": True, "perceiver_config": {"use_resampler": False}}, IdeficsConfig(use_resampler=True)),
        ({"vision_config": None, "perceiver_config": None}, IdeficsConfig()),
        (
            {"vision_config": {"hidden_size": 1280, "image_size": [280, 280]}},
            IdeficsConfig(vision_config=IdeficsVisionConfig(embed_dim=1280, image_size=280)),
        ),
        (
            {"vision_embed_dim": 1280, "vision_config": {"embed_dim": 1280, "image_size": 280}},
            IdeficsConfig(vision_config=IdeficsVisionConfig(embed_dim=1280, image_size=280)),
        ),
        ({"unheard_of": None, "temperature": 1, "dropout": 0}, IdeficsConfig()),
    ],
)
def test_older_and_partial_fields(values, expected):
    assert IdeficsConfig.from_dict(values) == expected


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"sliding_window": 4096}, "sliding_window 4096 is not implemented; remove the field"),
        ({"num_key_value_heads": 8}, "num_key_value_heads 8 is not implemented"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantization_config .* is not implemented"),
        ({"vision_config": {"projection_dim": 512}}, r"vision_config\.projection_dim 512 is not implemented"),
        ({"perceiver_config": {"mlp_ratio": 2}}, r"perceiver_config\.mlp_ratio 2 is not implemented"),
        ({"perceiver_config": {"model_type": "idefics2"}}, r"perceiver_config\.model_type 'idefics2'"),
        ({"vision_config": {"model_type": "siglip"}}, r"vision_config\.model_type 'siglip'"),
        ({"temperature": 0.7}, "temperature 0.7 is not implemented; known: 1.0"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder True is not implemented; known: False"),
        ({"cross_layer_activation_function": "relu"}, "cross_layer_activation_function 'relu'"),
        ({"model_type": "idefics2"}, "model_type 'idefics2' is not implemented; known: idefics"),
        ({"architectures": ["LlamaForCausalLM"]}, "architectures 'LlamaForCausalLM' is not implemented"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, r"rope_parameters\.rope_type 'linear'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, r"rope_scaling\.type 'dynamic' is not implemented"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, r"rope_parameters\.partial_rotary_factor 0\.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not implemented"),
        ({"rope_parameters": "default"}, "rope_parameters must be an object, but is 'default'"),
        ({"vision_config": 14}, "vision_config must be an object, but is 14"),
        ({"hidden_act": "gelu_fast"}, "hidden_act 'gelu_fast' is not implemented; known: silu, gelu,"),
        ({"vision_config": {"hidden_act": "tanh"}}, r"vision_config\.hidden_act 'tanh' is not implemented"),
        ({"alpha_type": "matrix"}, "alpha_type 'matrix' is not implemented; known: float, vector"),
        (
            {"alpha_initializer": "uniform"},
            "alpha_initializer 'uniform' is not implemented; known: zeros, ones, normal",
        ),
        ({"dropout": 1.0}, r"dropout is a share of 1, not 1\.0"),
        ({"vision_config": {"attention_dropout": 0.1}}, r"vision_config\.attention_dropout 0\.1 is not implemented"),
        ({"dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is not implemented; known: bfloat16, float32, float16"),
        ({"vision_config": {"patch_size": [14, 16]}}, r"vision_config\.patch_size \[14, 16\] .* must be square"),
        ({"vision_config": {"image_size": [224]}}, r"vision_config\.image_size \[224\] .* must be square"),
        ({"vision_config": {"image_size": 225}}, r"vision_config\.image_size \(225\) must be a multiple of "),
        ({"vision_config": {"embed_dim": 100}}, r"\.embed_dim \(100\) must be a multiple of .*heads \(16\)"),
        ({"num_attention_heads": 24}, r"hidden_size \(4096\) must be a multiple of num_attention_heads \(24\)"),
        ({"hidden_size": 32 * 9}, "a head of 9 dimensions is odd"),
        ({"cross_layer_interval": 5}, r"num_hidden_layers \(32\) must be a multiple of cross_layer_interval \(5\)"),
        ({"cross_layer_interval": 0}, "cross_layer_interval must be at least 1, but is 0"),
        ({"hidden_size": "4096"}, "hidden_size must be int, but is '4096'"),
        ({"hidden_size": 4096.5}, "hidden_size must be int, but is 4096.5"),
        ({"qk_layer_norms": 1}, "qk_layer_norms must be bool, but is 1"),
        ({"eos_token_id": ["</s>"]}, r"eos_token_id must be int \| tuple\[int, \.\.\.\]"),
        ({"vision_embed_dim": 1280, "vision_config": {"embed_dim": 768}}, "vision_embed_dim is 1280 but vision_config"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(values, sentence):
    with pytest.raises(ValueError, match=sentence) as failure:
        IdeficsConfig.from_dict(values)
    assert "\n" not in str(failure.value)


def test_a_field_of_the_dataclass_is_checked_too():
    with pytest.raises(ValueError, match="alpha_type 'matrix' is not implemented"):
        IdeficsConfig(alpha_type="matrix")
    with pytest.raises(ValueError, match=r"perceiver_config\.resampler_depth must be at least 1, but is 0"):
        IdeficsPerceiverConfig(resampler_depth=0)


def test_from_pretrained_names_the_file_at_fault(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; point to the directory of a checkpoint"):
        IdeficsConfig.from_pretrained(tmp_path)
    file = tmp_path / "config.json"
    for text, sentence in {
        '{"hidden_size": ': " is not valid JSON: ",
        "[1, 2]": " holds a list instead of an object; replace the file",
        "null": " holds null instead of an object",
        "[" * 100_000: " is not valid JSON: its brackets are nested too deep",
        '{"vocab_size": 1' + "0" * 10**6 + "}": " is not valid JSON: ",
        '{"alpha_type": "matrix"}': ": alpha_type 'matrix' is not implemented",
        '{"architectures": 5}': ": architectures must be a list, but is 5",
        '{"rms_norm_eps": NaN}': ": rms_norm_eps must be a finite number",
        '{"num_hidden_layers": true}': ": num_hidden_layers must be int, but is True",
        '{"num_hidden_layers": 1000000000}': ": num_hidden_layers must be at most 256, but is 1,000,000,000",
        '{"hidden_size": 1099511627776}': ": hidden_size must be at most 16,777,216",
        '{"vision_config": {"image_size": 30002}}': r": vision_config\.image_size must be at most 4,096",
    }.items():
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"config\.json{sentence}"):
            IdeficsConfig.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="elsewhere is not a directory, and no checkpoint of that name"):
        IdeficsConfig.from_pretrained(tmp_path / "elsewhere")


def test_a_hub_model_out_of_reach(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match="nobody/no-such-model is not a directory, and no checkpoint of that name"
    ):
        IdeficsConfig.from_pretrained("nobody/no-such-model")


def test_every_activation_is_implemented():
    from idefics_jax.nn.layers import ACTIVATIONS

    assert set(ACTIVATION_NAMES) == set(ACTIVATIONS)


@pytest.mark.torch
@pytest.mark.parametrize("preset", PRESETS)
def test_transformers_reads_what_we_write_and_we_what_it_writes(preset):
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(getattr(IdeficsConfig, preset)(), rope_theta=5e5, eos_token_id=(2, 5))
    theirs = transformers.IdeficsConfig(**json.loads(json.dumps(config.to_dict())))
    _same_fields(config, theirs)
    _same_fields(config.vision_config, theirs.vision_config)
    _same_fields(config.perceiver_config, theirs.perceiver_config)
    assert theirs.perceiver_config.use_resampler == config.use_resampler
    assert IdeficsConfig.from_dict(theirs.to_dict()) == config
    assert IdeficsConfig.from_dict(theirs.to_diff_dict()) == config


def _same_fields(ours, theirs):
    for field in dataclasses.fields(ours):
        value = getattr(ours, field.name)
        if field.name == "rope_theta":
            assert theirs.rope_parameters == {"rope_type": "default", "rope_theta": value}
        elif field.name == "dtype":
            assert str(theirs.dtype).removeprefix("torch.") == value
        elif not dataclasses.is_dataclass(value):
            theirs_value = getattr(theirs, field.name)
            assert (tuple(theirs_value) if isinstance(theirs_value, list) else theirs_value) == value
