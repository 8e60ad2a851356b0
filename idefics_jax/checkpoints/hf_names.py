"""The names and layouts of Hugging Face's IDEFICS checkpoints: the only file that knows them.

One table says, per kind of weight, where it stands in our modules, what Hugging Face calls it, and how the axes of the
two relate. Read left to right it saves, right to left it loads.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import einops
import jax
import numpy as np

from idefics_jax.config import IdeficsConfig
from idefics_jax.nn.stack import STACKED

#: Tensors of older checkpoints that hold nothing to load: PyTorch buffers which are recomputed.
STRAY = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|embeddings\.position_ids$")


class Rule(NamedTuple):
    """Mapping of a kind of weight: Hugging Face's name, `{}` its layer, and the einops pattern between the axes."""

    theirs: str
    pattern: str


def rules(config: IdeficsConfig) -> dict[str, Rule]:
    """Our path, without layer numbers -> rule, for every kind of weight a model of this config can have."""
    to_heads, from_heads, alpha = "(n h) d -> d n h", "d (n h) -> n h d", _alpha_pattern(config)
    table = {
        "model/embedding/table": Rule("model.embed_tokens.weight", "v d -> v d"),
        "model/embedding/additional": Rule("model.embed_tokens.additional_embedding.weight", "v d -> v d"),
        "model/decoder/norm/scale": Rule("model.norm.weight", "d -> d"),
        "head/table": Rule("lm_head.weight", "v d -> v d"),
        "head/additional": Rule("lm_head.additional_fc.weight", "v d -> v d"),
    }

    def add(ours: str, theirs: str, entries: dict[str, tuple[str, str]]) -> None:
        for path, (name, pattern) in entries.items():
            table[f"{ours}/{path}"] = Rule(f"{theirs}.{name}", pattern)

    def norm(path: str, name: str, bias: bool = False) -> dict[str, tuple[str, str]]:
        scale = {f"{path}/scale": (f"{name}.weight", "d -> d")}
        return scale | {f"{path}/bias": (f"{name}.bias", "d -> d")} if bias else scale

    def attention(o: str) -> dict[str, tuple[str, str]]:
        heads = {f"attention/{x}/kernel": (f"{x}_proj.weight", to_heads) for x in "qkv"}
        return heads | {"attention/o/kernel": (f"{o}.weight", from_heads)}

    def under(parent: str, entries: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
        return {path: (f"{parent}.{name}", pattern) for path, (name, pattern) in entries.items()}

    gated_mlp = {f"mlp/{x}/kernel": (f"mlp.{x}_proj.weight", "o i -> i o") for x in ("gate", "up", "down")}
    norms = norm("attention_norm", "input_layernorm") | norm("mlp_norm", "post_attention_layernorm")
    add(
        "model/decoder/groups/layers",
        "model.layers.{}",
        under("self_attn", attention("o_proj")) | gated_mlp | norms,
    )
    add(
        "model/decoder/groups/cross",
        "model.gated_cross_attn_layers.{}",
        under(
            "cross_attn",
            attention("o_proj") | norm("attention/q_norm", "q_layer_norm") | norm("attention/k_norm", "k_layer_norm"),
        )
        | gated_mlp
        | norms
        | {"alpha_attention": ("alpha_cross_attn", alpha), "alpha_mlp": ("alpha_dense", alpha)},
    )
    add(
        "model/resampler",
        "model.perceiver_resampler",
        {"latents": ("latents", "r d -> r d")} | norm("norm", "layer_norm", bias=True),
    )
    add(
        "model/resampler/layers",
        "model.perceiver_resampler.blocks.{}",
        under(
            "0",
            attention("output_proj")
            | norm("attention/context_norm", "context_layer_norm", bias=True)
            | norm("attention/latents_norm", "latents_layer_norm", bias=True)
            | norm("attention/q_norm", "q_layer_norm", bias=True)
            | norm("attention/k_norm", "k_layer_norm", bias=True),
        )
        | under(
            "1",
            norm("mlp_norm", "ln", bias=True)
            | {"mlp/up/kernel": ("fc.weight", "o i -> i o"), "mlp/down/kernel": ("c_proj.weight", "o i -> i o")},
        ),
    )
    add(
        "model/vision",
        "model.vision_model",
        {
            "class_embedding": ("embeddings.class_embedding", "d -> d"),
            "patch_embedding/kernel": ("embeddings.patch_embedding.weight", "d c y x -> y x c d"),
            "position_embedding": ("embeddings.position_embedding.weight", "p d -> p d"),
        }
        | norm("pre_norm", "pre_layrnorm", bias=True)
        | norm("post_norm", "post_layernorm", bias=True),
    )
    add(
        "model/vision/layers",
        "model.vision_model.encoder.layers.{}",
        under(
            "self_attn",
            attention("out_proj")
            | {f"attention/{x}/bias": (f"{x}_proj.bias", "(n h) -> n h") for x in "qkv"}
            | {"attention/o/bias": ("out_proj.bias", "d -> d")},
        )
        | norm("attention_norm", "layer_norm1", bias=True)
        | norm("mlp_norm", "layer_norm2", bias=True)
        | {"mlp/up/kernel": ("mlp.fc1.weight", "o i -> i o"), "mlp/down/kernel": ("mlp.fc2.weight", "o i -> i o")}
        | {"mlp/up/bias": ("mlp.fc1.bias", "o -> o"), "mlp/down/bias": ("mlp.fc2.bias", "o -> o")},
    )
    return table


def _alpha_pattern(config: IdeficsConfig) -> str:
    return {"float": "1 ->", "vector": "1 1 d -> d"}[config.alpha_type]


class Weight(NamedTuple):
    """A leaf of a model and the Hugging Face tensors that it is made of.

    Attributes:
        path: our path, e.g. `model/decoder/groups/0/layers/1/attention/q/kernel`.
        names: Hugging Face's names in an array of the leaf's leading layer axes (shape `()` for a listed layer).
        shape: the Hugging Face shape of each tensor.
        pattern: einops pattern from their axes to ours.
        axes: sizes of the axes in the pattern, by letter.
        leaf: the leaf itself: an array, or its `jax.ShapeDtypeStruct`.
    """

    path: str
    names: np.ndarray
    shape: tuple[int, ...]
    pattern: str
    axes: dict[str, int]
    leaf: Any

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """Return a Hugging Face tensor in the model's axes: a view, no data moved."""
        return einops.rearrange(tensor, self.pattern, **{k: v for k, v in self.axes.items() if k in self.pattern})

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Return a layer's weight in Hugging Face's axes."""
        return einops.rearrange(array, " -> ".join(part.strip() for part in reversed(self.pattern.split("->"))))


def weights(model: Any, config: IdeficsConfig) -> Iterator[Weight]:
    """Every leaf of `model` (arrays, or the shapes that `jax.eval_shape` gives) with its Hugging Face names."""
    table = rules(config)
    for keys, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
        yield weight_at(path_of(keys), leaf, config, table)


def path_of(keys: Sequence[Any]) -> str:
    """A leaf's path, such as `model/decoder/groups/0/cross/alpha_mlp`, from its keys in a model's pytree."""
    return "/".join(str(getattr(key, "name", getattr(key, "idx", None))) for key in keys[:-1])


def weight_at(path: str, leaf: Any, config: IdeficsConfig, table: dict[str, Rule]) -> Weight:
    """The leaf at `path` with its Hugging Face names, which `table`, the config's `rules`, says.

    Raises:
        KeyError: no model of this config has a leaf there.
        ValueError: the leaf has too many axes or layers for it, or too few axes.
    """
    parts = path.split("/")
    kinds = [part for part in parts if not part.isdigit()]
    if kinds[:1] not in (["model"], ["head"]):
        kinds = ["model", *kinds]
    rule = table["/".join(kinds)]
    depth = sum(kind in STACKED for kind in kinds)
    indices = [int(part) for part in parts if part.isdigit()]
    stacked = leaf.shape[: depth - len(indices)]
    layers, most = math.prod(stacked), _most_layers(config)
    if layers > most:  # before they have names
        raise ValueError(f"it has {layers:,} layers, and the config {most:,}")
    numbers = _layer_numbers(kinds, config, indices, stacked)
    names = np.vectorize(rule.theirs.format, otypes=[object])(numbers)
    letters = rule.pattern.split("->")[1].split()
    axes = dict(zip(letters, leaf.shape[len(stacked) :], strict=True))
    return Weight(path, names, _their_shape(rule.pattern, axes), rule.pattern, axes, leaf)


def by_number(name: str) -> list[Any]:
    """A key that sorts names by the numbers in them: layer 2 before layer 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _most_layers(config: IdeficsConfig) -> int:
    """The layers of the part that has the most."""
    return max(
        config.num_hidden_layers, config.vision_config.num_hidden_layers, config.perceiver_config.resampler_depth
    )


def _layer_numbers(kinds: list[str], config: IdeficsConfig, indices: list[int], stacked: tuple[int, ...]) -> np.ndarray:
    """Hugging Face's number of each layer in a leaf: they count decoder layers through, we by group."""
    interval = config.cross_layer_interval if "groups" in kinds and "layers" in kinds else 1
    if stacked:
        return np.arange(np.prod(stacked)).reshape(stacked)
    return np.asarray(indices[0] * interval + indices[1] if len(indices) == 2 else indices[0] if indices else 0)


def _their_shape(pattern: str, axes: dict[str, int]) -> tuple[int, ...]:
    groups = re.findall(r"\([^)]*\)|\S+", pattern.split("->")[0])
    return tuple(int(np.prod([axes.get(axis, 1) for axis in group.strip("()").split()])) for group in groups)
