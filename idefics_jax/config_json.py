"""Hugging Face's `config.json` in and out of `IdeficsConfig`.

The reader knows every layout that was ever published: sub-configurations that are missing, partial or full; the flat
keys of the first revisions (`vision_embed_dim`, `resampler_depth`); `rope_theta` or `rope_parameters`; `torch_dtype` or
`dtype`. An absent field has the default of today's transformers, also where an older one had another (to 4.32 an
absent `vision_config.hidden_act` meant quick_gelu).
"""

from dataclasses import asdict, fields
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin

from idefics_jax.utils.json_files import check_types

if TYPE_CHECKING:
    from idefics_jax.config import IdeficsConfig

ARCHITECTURES = ("IdeficsForVisionText2Text", "IdeficsForCausalLM", "IdeficsModel")
SUB_MODEL_TYPES = ("idefics", "idefics_vision", "idefics_perceiver", "idefics_perciever")  # the last is transformers'

# Fields that say where a file comes from, or that the model has never read: any value will do.
_REMARKS = {
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "ffn_dim",
    "id2label",
    "label2id",
    "max_new_tokens",
    "max_sequence_length",
    "name_or_path",
    "transformers_version",
    "use_cache",
    "vision_model_name",
    "vision_model_params",
    "word_embed_proj_dim",
}
# In a sub-configuration these are leftovers too: the reference takes them from the top.
_SUB_CONFIG_REMARKS = _REMARKS | {"architectures", "dtype", "tie_word_embeddings", "torch_dtype"}

# What every transformers configuration can hold, from one version or another, and the only value understood here.
# A field that is null is taken for absent.
_GENERIC = {
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "cross_layer_activation_function": "swiglu",
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "partial_rotary_factor": 1.0,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "top_k": 50,
    "top_p": 1.0,
    "torchscript": False,
    "typical_p": 1.0,
    "use_bfloat16": False,
}


def read(kind: "type[IdeficsConfig]", values: dict[str, Any]) -> "IdeficsConfig":
    """The configuration that the fields of a `config.json` describe; ValueError where one is not implemented."""
    types: dict[str, Any] = {field.name: field.type for field in fields(kind)}
    vision_kind, perceiver_kind = types["vision_config"], types["perceiver_config"]
    values = {name: value for name, value in values.items() if value is not None}
    vision, perceiver = _sub_config(values, "vision_config"), _sub_config(values, "perceiver_config")
    _move(values, vision, {f"vision_{field.name}": field.name for field in fields(vision_kind)}, "vision_config")
    _move(values, perceiver, {field.name: field.name for field in fields(perceiver_kind)}, "perceiver_config")
    _move(vision, vision, {"hidden_size": "embed_dim"}, "vision_config")
    for size in ("image_size", "patch_size"):
        if size in vision:
            vision[size] = _square(vision[size], size)

    # The reference reads use_resampler at the top, and writes its default (false) into perceiver_config beside it.
    nested = perceiver.pop("use_resampler", False)
    values.setdefault("use_resampler", nested)
    values["rope_theta"] = _rope_theta(values, kind.rope_theta)
    torch_dtype = values.pop("torch_dtype", kind.dtype)
    values.setdefault("dtype", torch_dtype)
    check_types(values, {"architectures": list}, "config.json")
    for architecture in values.pop("architectures", []):
        _one_of("architectures", architecture, ARCHITECTURES)
    _one_of("model_type", values.pop("model_type", "idefics"), ("idefics",))
    return _make(
        kind,
        values,
        _REMARKS,
        vision_config=_make(vision_kind, vision, _SUB_CONFIG_REMARKS),
        perceiver_config=_make(perceiver_kind, perceiver, _SUB_CONFIG_REMARKS),
    )


def write(config: "IdeficsConfig") -> dict[str, Any]:
    """The fields of a `config.json`, under the names that both old and new transformers read."""
    values = asdict(config)
    values["torch_dtype"] = values.pop("dtype")
    values["vision_config"]["model_type"] = "idefics_vision"
    values["perceiver_config"] |= {"model_type": "idefics_perciever", "use_resampler": config.use_resampler}
    values |= {"architectures": ["IdeficsForVisionText2Text"], "model_type": "idefics", "use_cache": True}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _sub_config(values: dict[str, Any], name: str) -> dict[str, Any]:
    sub = values.pop(name, {})
    if not isinstance(sub, dict):
        raise ValueError(f"{name} must be an object, but is {_shown(sub)}.")
    sub = {key: value for key, value in sub.items() if value is not None}
    _one_of(f"{name}.model_type", sub.pop("model_type", "idefics"), SUB_MODEL_TYPES)
    return sub


def _move(source: dict[str, Any], target: dict[str, Any], names: dict[str, str], where: str) -> None:
    """Moves fields that `source` holds under older names to `target`."""
    for old, new in names.items():
        if old in source:
            value = source.pop(old)
            if target.setdefault(new, value) != value:
                raise ValueError(f"{old} is {value!r} but {where}.{new} is {target[new]!r}; keep one of them.")


def _square(size: Any, name: str) -> Any:
    if not isinstance(size, list | tuple):
        return size
    if len(size) != 2 or size[0] != size[1]:
        raise ValueError(f"vision_config.{name} {_shown(list(size))} is not implemented; it must be square.")
    return size[0]


def _rope_theta(values: dict[str, Any], default: float) -> Any:
    theta = values.pop("rope_theta", default)
    for name in ("rope_parameters", "rope_scaling"):
        rope = values.pop(name, {})
        if not isinstance(rope, dict):
            raise ValueError(f"{name} must be an object, but is {_shown(rope)}.")
        for key, value in rope.items():
            if key == "rope_theta":
                theta = value
            elif key in ("rope_type", "type"):
                _one_of(f"{name}.{key}", value, ("default",))
            elif key != "partial_rotary_factor" or value != 1.0:
                raise ValueError(f"{name}.{key} {value!r} is not implemented; remove it if the model works without.")
    return theta


def _make(kind: Any, values: dict[str, Any], remarks: set[str], **sub_configs: Any) -> Any:
    """A dataclass from JSON values; everything that is not one of its fields must be known and at its default."""
    arguments, types = dict(sub_configs), {field.name: field.type for field in fields(kind)}
    for name, value in values.items():
        if name in types:
            arguments[name] = _from_json(kind.prefix + name, value, types[name])
        elif name in _GENERIC:
            _one_of(kind.prefix + name, value, (_GENERIC[name],))
        elif name not in remarks:
            raise ValueError(
                f"{kind.prefix}{name} {_shown(value)} is not implemented; remove the field if the model works without."
            )
    return kind(**arguments)


def _from_json(name: str, value: Any, kind: Any) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    elif kind is float and type(value) is int:
        value = float(value)
    if not _is(value, kind):
        raise ValueError(f"{name} must be {kind.__name__ if type(kind) is type else kind}, but is {_shown(value)}.")
    return value


def _is(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_is(value, option) for option in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is(item, get_args(kind)[0]) for item in value)
    return type(value) is kind


def _one_of(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        known = ", ".join(str(choice) for choice in choices)
        raise ValueError(f"{name} {_shown(value)} is not implemented; known: {known}.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."
