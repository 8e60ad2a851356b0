"""The pieces every tower is made of: linear maps, norms, MLPs, rotary embedding, and how a pile of layers is run.

Weights keep their axes apart (`[embed, heads, head_dim]`) so that a sharding over heads shows in their type. Everything
computes in the dtype of its input, except norms, softmax and rotary angles, which are float32.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from idefics_jax.sharding import constrain, gathered, spec

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def parameter(shape: tuple[int, ...], axes: tuple[str | None, ...], init: Callable[..., Array]) -> nnx.Param:
    """A float32 parameter laid out by its logical axes; `init(shape, out_sharding=...)` makes its value."""
    return nnx.Param(init(shape, out_sharding=spec(*axes)))


def normal(key: Array, std: float) -> Callable[..., Array]:
    """An initialiser for `parameter`: zero-mean normal values."""
    return lambda shape, out_sharding: std * jax.random.normal(key, shape, out_sharding=out_sharding)


def constant(value: float) -> Callable[..., Array]:
    """An initialiser for `parameter`: one value everywhere."""
    return lambda shape, out_sharding: jnp.full(shape, value, device=_named(out_sharding))


def _named(partition):
    return None if partition is None else jax.NamedSharding(jax.sharding.get_abstract_mesh(), partition)


class Linear(nnx.Module):
    """`x @ kernel (+ bias)` over any number of input and output axes, given as `{logical axis: size}`."""

    def __init__(self, key: Array, inputs: dict[str, int], outputs: dict[str, int], *, std: float, bias: bool = False):
        axes, shape = (*inputs, *outputs), (*inputs.values(), *outputs.values())
        self.contracted = len(inputs)
        self.output_axes = tuple(None if axis == "embed" else axis for axis in outputs)
        self.kernel = parameter(shape, axes, normal(key, std))
        self.bias = parameter(tuple(outputs.values()), self.output_axes, constant(0.0)) if bias else None

    def __call__(self, x: Array) -> Array:
        """`[..., *inputs] -> [..., *outputs]`, in `x`'s dtype."""
        leading = x.ndim - self.contracted
        dimensions = ((tuple(range(leading, x.ndim)), tuple(range(self.contracted))), ((), ()))
        layout = spec("batch", *[None] * (leading - 1), *self.output_axes)
        y = jax.lax.dot_general(x, gathered(self.kernel[...].astype(x.dtype)), dimensions, out_sharding=layout)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis (Zhang & Sennrich 2019), in float32."""

    def __init__(self, size: int, eps: float):
        self.eps = eps
        self.scale = parameter((size,), (None,), constant(1.0))

    def __call__(self, x: Array) -> Array:
        """`[..., size] -> [..., size]`, in `x`'s dtype."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, with a bias, in float32."""

    def __init__(self, size: int, eps: float):
        self.eps = eps
        self.scale = parameter((size,), (None,), constant(1.0))
        self.bias = parameter((size,), (None,), constant(0.0))

    def __call__(self, x: Array) -> Array:
        """`[..., size] -> [..., size]`, in `x`'s dtype."""
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class MLP(nnx.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, key: Array, embed: int, mlp: int, activation: str, *, std: float, bias: bool):
        up, down = jax.random.split(key)
        self.activation = activation
        self.up = Linear(up, {"embed": embed}, {"mlp": mlp}, std=std, bias=bias)
        self.down = Linear(down, {"mlp": mlp}, {"embed": embed}, std=std, bias=bias)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class GatedMLP(nnx.Module):
    """LLaMA's MLP: `down(act(gate(x)) * up(x))`."""

    def __init__(self, key: Array, embed: int, mlp: int, activation: str, *, std: float):
        gate, up, down = jax.random.split(key, 3)
        self.activation = activation
        self.gate = Linear(gate, {"embed": embed}, {"mlp": mlp}, std=std)
        self.up = Linear(up, {"embed": embed}, {"mlp": mlp}, std=std)
        self.down = Linear(down, {"mlp": mlp}, {"embed": embed}, std=std)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))


Rope = tuple[Float[Array, "b t half"], Float[Array, "b t half"]]


def rotary_angles(positions: Int[Array, "b t"], head_dim: int, theta: float) -> Rope:
    """Cosines and sines of the rotary embedding (Su et al. 2021) at `positions`, float32."""
    frequencies = theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "b t n h"], rope: Rope) -> Float[Array, "b t n h"]:
    """Turns each pair `(x[j], x[j + h/2])` by its angle: LLaMA's half-split layout, not the interleaved one."""
    cos, sin = (angle[:, :, None, :] for angle in rope)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def pile(make: Callable[[Array], Any], key: Array, depth: int, stacked: bool) -> Any:
    """`depth` layers made by `make(key)`: stacked into one whose weights have a leading `depth` axis, or a list."""
    keys = jax.random.split(key, depth)
    return jax.vmap(make)(keys) if stacked else nnx.List([make(key) for key in keys])


def run(body: Callable[..., tuple[Any, tuple]], carry: Any, layers: Any, *extras: Any) -> tuple[Any, tuple]:
    """`carry, outputs = body(carry, layer, *its_extras)` through a pile: the last carry, and each output piled.

    A stacked pile is scanned, so that the compiled program does not grow with depth (for training). A list is looped
    over, so that each layer's weights and caches are buffers of their own (for generation). Extras and outputs come in
    the same form: stacked along a leading axis, or a tuple with one entry per layer; None stands for "none".
    """
    if not isinstance(layers, nnx.List):
        return jax.lax.scan(lambda carry, layer: body(carry, *layer), carry, (layers, *extras))
    per_layer = []
    for index, layer in enumerate(layers):
        carry, outputs = body(carry, layer, *(None if extra is None else extra[index] for extra in extras))
        per_layer.append(outputs)
    return carry, tuple(
        None if all(one is None for one in output) else output for output in zip(*per_layer, strict=True)
    )


class Vocabulary(nnx.Module):
    """Token vectors, with the additional tokens in a small table of their own that can train while the rest is frozen.

    It embeds ids and, as an output head, scores hidden states; a tied model uses one for both.
    """

    def __init__(self, key: Array, size: int, additional: int, embed: int, *, std: float):
        table, extra = jax.random.split(key)
        self.table = parameter((size, embed), ("vocab", "embed"), normal(table, std))
        self.additional = (
            parameter((additional, embed), (None, "embed"), normal(extra, embed**-0.5)) if additional else None
        )

    def embed(self, input_ids: Int[Array, "b t"], dtype: Any) -> Float[Array, "b t d"]:
        """Vectors of token ids, in `dtype`."""
        layout = spec("batch", None, None)
        table = gathered(self.table[...])
        if self.additional is None:
            return table.at[input_ids].get(out_sharding=layout).astype(dtype)
        common = table.at[jnp.minimum(input_ids, len(table) - 1)].get(out_sharding=layout)
        extra = gathered(self.additional[...]).at[jnp.maximum(input_ids - len(table), 0)].get(out_sharding=layout)
        return jnp.where((input_ids < len(table))[..., None], common, extra).astype(dtype)

    def logits(self, x: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Float32 scores of every token, the additional ones last."""
        tables = [self.table] if self.additional is None else [self.table, self.additional]
        scores = [
            jnp.einsum("btd,vd->btv", x, gathered(table[...].astype(x.dtype)), preferred_element_type=jnp.float32)
            for table in tables
        ]
        return jnp.concatenate([constrain(score, "batch") for score in scores], axis=-1)
