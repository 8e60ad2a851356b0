"""Layers of one kind: stacked and scanned to train, unrolled to generate; what a backward pass keeps of them."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array

from idefics_jax.kernels.cudnn import keeps_result
from idefics_jax.kernels.splash import SAVED
from idefics_jax.nn.layers import Dropout

#: Attributes that are stacked or unrolled layers.
STACKED = ("layers", "groups")


class Submodule(NamedTuple):
    """A module's path, such as `model/decoder/groups/layers/attention/q`, itself, and the stacked layers' axes that its
    weights begin with."""

    path: str
    module: nnx.Module
    layers: tuple[int, ...]


def init_layers(make: Callable[[Array], Any], key: Array, depth: int, stacked: bool) -> Any:
    """`depth` layers made by `make(key)`: stacked into one whose weights have a leading `depth` axis, or a list."""
    layers = jax.vmap(make)(jax.random.split(key, depth))  # traced and compiled once for any depth
    if stacked:
        return layers

    def layer(at: int) -> Any:
        return jax.tree.map(lambda leaf: jax.lax.index_in_dim(leaf, at, keepdims=False), layers)

    return nnx.List([layer(at) for at in range(depth)])


#: What a layer of the decoder can keep for its backward pass, by name: queries, keys, values, what the attention kernel
#: gives (on TPUs and GPUs) and then the map after it, and what the gated MLP's first two maps give. Of a token those
#: are as many numbers as the hidden size, the last two 2.7 times as many; but for the kernel's, what is larger is as
#: much slower to compute again. And which numbers dropout keeps, a byte each.
KEEPABLE = ("query", "key", "value", SAVED, "out", "gate", "up", "dropout")

#: What the backward pass computes again of each layer: nothing, all from its input, or all but matrix products; or, as
#: names of `KEEPABLE`, all but those.
Remat = Literal["none", "full", "dots"] | tuple[str, ...]


def rematerialize(function: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """`function`, of which the backward pass computes again what `remat` does not keep.

    Raises:
        ValueError: there is no such `remat`.
    """
    policies = jax.checkpoint_policies
    match remat:
        case "none":
            return function
        case "full":
            policy = policies.nothing_saveable
        case "dots":
            policy = policies.dots_with_no_batch_dims_saveable
        case tuple() if set(remat) <= set(KEEPABLE):
            policy = policies.save_only_these_names(*remat)
            if SAVED in remat:
                policy = policies.save_from_both_policies(policy, keeps_result)
        case _:
            raise ValueError(
                f"remat is none, full, dots, or a tuple of what is kept, of {', '.join(KEEPABLE)}; not {remat!r}."
            )
    return jax.checkpoint(function, policy=policy, prevent_cse=False)


def scan_layers(
    body: Callable[..., tuple[Any, tuple]],
    carry: Any,
    layers: Any,
    *extras: Any,
    remat: Remat = "none",
    unroll: bool = False,
) -> tuple[Any, tuple]:
    """`carry, outputs = body(carry, layer, *its_extras)` through all layers: the last carry, and the outputs of each.

    Stacked layers are scanned, so that the compiled program does not grow with depth (for training). Unrolled layers
    are looped over, so that each layer's weights and caches are buffers of their own (for generation). Extras and
    outputs come in the same form: stacked along a leading axis, or a tuple with an entry per layer; None is "none".

    Args:
        remat: what a layer's backward pass computes again.
        unroll: for few layers in each layer of another scan: they become one step of it. Scans in a scan copy weights
            and what the backward pass needs from the one's buffers to the other's, a tenth of a step.
    """
    body = rematerialize(body, remat)
    if not isinstance(layers, nnx.List):
        return jax.lax.scan(lambda carry, layer: body(carry, *layer), carry, (layers, *extras), unroll=unroll)
    per_layer = []
    for index, layer in enumerate(layers):
        carry, outputs = body(carry, layer, *(None if extra is None else extra[index] for extra in extras))
        per_layer.append(outputs)
    return carry, tuple(
        None if all(one is None for one in output) else output for output in zip(*per_layer, strict=True)
    )


def submodules(module: nnx.Module, path: str = "", layers: tuple[int, ...] = ()) -> Iterator[Submodule]:
    """Every module in `module`, itself included."""
    yield Submodule(path, module, layers)
    for name, value in vars(module).items():
        if isinstance(value, nnx.List):
            for index, one in enumerate(value):
                yield from submodules(one, f"{path}/{name}/{index}".lstrip("/"), layers)
        elif isinstance(value, nnx.Module):
            stacked = (*layers, jax.tree.leaves(value)[0].shape[len(layers)]) if name in STACKED else layers
            yield from submodules(value, f"{path}/{name}".lstrip("/"), stacked)


def with_dropout_keys(model: Any, key: Array) -> Any:
    """The model with a key of its own in every layer's every `Dropout`, which therefore drops."""
    model = jax.tree.map(lambda leaf: leaf, model)  # modules of its own, the same arrays
    for number, (_, module, layers) in enumerate(submodules(model)):
        if isinstance(module, Dropout) and module.rate > 0.0:
            module.key = jax.random.split(jax.random.fold_in(key, number), layers)
    return model
