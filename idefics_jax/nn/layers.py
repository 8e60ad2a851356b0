"""Layers that every tower is made of: linear maps, norms, MLPs, dropout and the vocabulary.

Weights keep their axes apart (`[embed, heads, head_dim]`) so that a sharding over heads shows in their type. Everything
computes in the dtype of its input, except norms, softmax and rotary angles, which are float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from idefics_jax.parallel.matmul import embedding_lookup, sharded_matmul
from idefics_jax.parallel.mesh import constrain, parameter_spec, shards

#: Of a polynomial of odd powers, from the first on, whose tanh is the normal distribution's share below a number less
#: that above it, up to six deviations: fitted for the largest error of `gelu`, which is 4e-6.
NORMAL_SHARE = (0.797827879, 0.0364690334, -1.24865386e-4, -3.06000586e-5, 1.12109355e-6)


@jax.custom_jvp
def normal_share(x: Array) -> Array:
    """The normal distribution's share below `x`, by tanh, for which TPUs have an instruction; for `erf` they compute
    two polynomials and divide them, which takes longer than the matrix products around it."""
    near = jnp.clip(x, -6, 6)
    odd = near * functools.reduce(lambda sum, each: sum * jnp.square(near) + each, reversed(NORMAL_SHARE))
    return 0.5 + 0.5 * jnp.tanh(odd)


normal_share.defjvps(lambda slope, _, x: slope * jnp.exp(-0.5 * jnp.square(x)) * (2 * math.pi) ** -0.5)


def gelu(x: Array) -> Array:
    """`x` times the normal distribution's share below it (Hendrycks & Gimpel 2016).

    By `erf`, as PyTorch has it (`jax.nn.gelu` goes by `erfc`, of which TPUs compute both of its branches); in bfloat16,
    whose digits cannot tell, by `normal_share`.
    """
    y = x.astype(jnp.float32)
    share = normal_share(y) if x.dtype == jnp.bfloat16 else 0.5 * (1 + jax.lax.erf(y * math.sqrt(0.5)))
    return (y * share).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": gelu,
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def parameter(shape: tuple[int, ...], axes: tuple[str | None, ...], init: Callable[..., Array]) -> nnx.Param:
    """A float32 parameter laid out by its logical axes; `init(shape, out_sharding=...)` makes its value."""
    return nnx.Param(init(shape, out_sharding=parameter_spec(shape, axes)))


def normal(key: Array, std: float) -> Callable[..., Array]:
    """An initialiser for `parameter`: zero-mean normal values."""
    return lambda shape, out_sharding: std * jax.random.normal(key, shape, out_sharding=out_sharding)


def constant(value: float) -> Callable[..., Array]:
    """An initialiser for `parameter`: one value everywhere."""
    return lambda shape, out_sharding: jnp.full(shape, value, device=_named(out_sharding))


def _named(partition):
    return None if partition is None else jax.NamedSharding(jax.sharding.get_abstract_mesh(), partition)


class Dropout(nnx.Module):
    """Zeroes a share `rate` of its input and scales the rest up, while it has a `key`; else it does nothing.

    Only training gives it one, anew for every step: `with_dropout_keys`.
    """

    def __init__(self, rate: float):
        self.rate = rate
        self.key: Array | None = nnx.data(None)

    def __call__(self, x: Array) -> Array:
        """The same shape and dtype."""
        if self.key is None or self.rate == 0.0:
            return x
        kept = checkpoint_name(self._kept(self.key, x), "dropout")
        return jnp.where(kept, x / (1 - self.rate), 0).astype(x.dtype)

    def _kept(self, key: Array, x: Array) -> Array:
        """Which numbers to keep: by 16 random bits for each, since what costs is to draw them, 32 at a time."""
        layout = jax.typeof(x).sharding
        axis = max(axis for axis, split in enumerate(layout.spec) if split is None)
        drawn = tuple(-(-size // 2) if each == axis else size for each, size in enumerate(x.shape))
        bits = jax.random.bits(key, drawn, out_sharding=layout)
        numbers = jnp.concatenate([bits & 0xFFFF, bits >> 16], axis=axis)
        return jax.lax.slice_in_dim(numbers, 0, x.shape[axis], axis=axis) < round((1 - self.rate) * 2**16)


class Lora(nnx.Module):
    """Low-rank adapter of a linear map (Hu et al. 2021), which adds `scale * (dropout(x) @ a) @ b`, zero at first.

    `a` has the map's input axes and the rank, `b` the rank and the map's output axes.
    """

    def __init__(self, a: nnx.Param, b: nnx.Param, scale: float, dropout: float):
        self.a, self.b, self.scale = a, b, scale
        self.dropout = Dropout(dropout)


class Linear(nnx.Module):
    """`x @ kernel (+ bias)` over any number of input and output axes, given as `{logical axis: size}`."""

    def __init__(self, key: Array, inputs: dict[str, int], outputs: dict[str, int], *, std: float, bias: bool = False):
        axes, shape = (*inputs, *outputs), (*inputs.values(), *outputs.values())
        self.axes, self.contracted = axes, len(inputs)
        self.output_axes = tuple(None if axis == "embed" else axis for axis in outputs)
        self.kernel = parameter(shape, axes, normal(key, std))
        self.bias = parameter(tuple(outputs.values()), self.output_axes, constant(0.0)) if bias else None
        self.lora: Lora | None = nnx.data(None)  # set by `idefics_jax.nn.lora.add_adapters`

    def __call__(self, x: Array) -> Array:
        """`[..., *inputs] -> [..., *outputs]`, in `x`'s dtype."""
        contracted = tuple(range(self.contracted))
        y = sharded_matmul(x, self.kernel[...].astype(x.dtype), contracted, *self.output_axes)
        if self.lora is not None:
            low = sharded_matmul(self.lora.dropout(x), self.lora.a[...].astype(x.dtype), contracted, None)
            y = y + self.lora.scale * sharded_matmul(low, self.lora.b[...].astype(x.dtype), (0,), *self.output_axes)
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
        gate, up = checkpoint_name(self.gate(x), "gate"), checkpoint_name(self.up(x), "up")
        return self.down(ACTIVATIONS[self.activation](gate) * up)


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

    @property
    def tables(self) -> list[tuple[Array, str | None]]:
        """The tables in the order of their ids, and the logical axis of each one's rows.

        Rows that `tensor` does not divide are whole on every device.
        """
        table = self.table[...]
        common: list[tuple[Array, str | None]] = [(table, "vocab" if len(table) % shards("vocab") == 0 else None)]
        return common if self.additional is None else [*common, (self.additional[...], None)]

    @jax.named_scope("embedding")
    def embed(self, input_ids: Int[Array, "b t"], dtype: Any) -> Float[Array, "b t d"]:
        """Vectors of token ids, in `dtype`."""
        table = self.table[...]
        if self.additional is None:
            return embedding_lookup(table, input_ids).astype(dtype)
        common = embedding_lookup(table, jnp.minimum(input_ids, len(table) - 1))
        extra = embedding_lookup(self.additional[...], jnp.maximum(input_ids - len(table), 0))
        return jnp.where((input_ids < len(table))[..., None], common, extra).astype(dtype)

    @jax.named_scope("head")
    def logits(self, x: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Float32 scores of every token, the additional ones last."""
        scores = [
            sharded_matmul(x, table.astype(x.dtype), (1,), axis, dtype=jnp.float32) for table, axis in self.tables
        ]
        return jnp.concatenate([constrain(score, "batch") for score in scores], axis=-1)
