"""Meshes, and the layout of arrays on them by logical axes.

Sharding is explicit (`jax.sharding.AxisType.Explicit`): an array's type carries its partition spec, and JAX checks
every operation against it. Code names *logical* axes; the table below says which mesh axes each one is split over.
Without a mesh, the functions here change nothing, so the same model code runs on one device.
"""

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    get_abstract_mesh,
    reshard,
    use_abstract_mesh,
)
from jaxtyping import Array

from idefics_jax.parallel import collectives

MESH_AXES = ("data", "fsdp", "tensor")
AnyMesh = TypeVar("AnyMesh", bound=Mesh | AbstractMesh | None)

#: Logical axis -> mesh axes. Anything absent is not split.
LOGICAL_AXES = {
    "batch": ("data", "fsdp"),  # of activations
    "embed": "fsdp",  # of weights: gathered just before use
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: list[Any] | None = None) -> Mesh:
    """A `data x fsdp x tensor` mesh over `devices` (default: all); one size may be -1, meaning whatever is left.

    Over several TPU slices, `data` goes across them, so that only gradients cross the slow network in between. On TPUs
    without `tensor`, `fsdp` is a part of the slice that is as square as can be: see `parallel.collectives`. GPUs are
    taken host by host, so that the last axes stay within NVLink's reach where the sizes allow it.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or `data` is no multiple of the slices'.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) == 1:
        known = -data * fsdp * tensor
        sizes[sizes.index(-1)] = len(devices) // known if known > 0 else 0
    if sizes[0] * sizes[1] * sizes[2] != len(devices) or min(sizes) < 1:
        raise ValueError(f"A mesh of data={data}, fsdp={fsdp}, tensor={tensor} does not use {len(devices)} devices.")
    if devices[0].platform == "gpu":
        # GPUs have coordinates and slices too: their host's number, and the NVLink domain, which any mesh may cross.
        in_order = sorted(devices, key=lambda device: (getattr(device, "slice_index", 0), device.process_index))
        return Mesh(np.array(in_order).reshape(sizes), MESH_AXES, axis_types=(AxisType.Explicit,) * 3)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes[0] % slices:
        raise ValueError(f"The devices are {slices} slices; data={sizes[0]} must be a multiple of that.")
    on_grid = devices[0].platform == "tpu" and sizes[2] == 1
    if on_grid and (in_order := collectives.tiled(devices, sizes[1])):
        return Mesh(np.array(in_order).reshape(sizes), MESH_AXES, axis_types=(AxisType.Explicit,) * 3)
    if slices > 1:
        per_slice = (sizes[0] // slices, *sizes[1:])
        grid = mesh_utils.create_hybrid_device_mesh(per_slice, (slices, 1, 1), devices)
        return Mesh(grid, MESH_AXES, axis_types=(AxisType.Explicit,) * 3)
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Explicit,) * 3, devices=devices)


def check_mesh(mesh: Mesh | AbstractMesh | None, config: Any) -> None:
    """Checks that `tensor` divides what it splits: the heads and the MLPs of a model of this `IdeficsConfig`.

    Raises:
        ValueError: it does not, with the sizes that do.
    """
    if mesh is None or mesh.shape["tensor"] == 1:
        return
    tensor, vision, perceiver = mesh.shape["tensor"], config.vision_config, config.perceiver_config
    sizes = {
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "vision_config.num_attention_heads": vision.num_attention_heads,
        "vision_config.intermediate_size": vision.intermediate_size,
    }
    if config.use_resampler:
        sizes["perceiver_config.resampler_n_heads"] = perceiver.resampler_n_heads
        sizes["4 * vision_config.embed_dim"] = 4 * vision.embed_dim
    uneven = [f"{name} ({size})" for name, size in sizes.items() if size % tensor]
    if uneven:
        common = math.gcd(*sizes.values())
        fitting = ", ".join(str(size) for size in range(1, common + 1) if common % size == 0)
        raise ValueError(
            f"A mesh of tensor={tensor} does not divide the model's {', '.join(uneven)}; "
            f"tensor can be {fitting}, and the other devices fsdp or data."
        )


def mesh_sizes(text: str) -> dict[str, int]:
    """The sizes of a mesh such as "fsdp=2,tensor=4"; an axis that is not named has 1.

    Raises:
        ValueError: an axis that does not exist, or a size that is no whole number.
    """
    sizes = {}
    for part in text.split(","):
        axis, equals, size = part.strip().partition("=")
        if axis not in MESH_AXES:
            raise ValueError(f"there is no axis {axis!r}; the axes are {', '.join(MESH_AXES)}")
        if axis in sizes:
            raise ValueError(f"{axis} is given twice")
        if not equals or not re.fullmatch(r"-?[0-9]{1,9}", size) or (int(size) < 1 and size != "-1"):
            raise ValueError(f"{part.strip()!r} must be {axis}= and a whole number, or -1 for the rest")
        sizes[axis] = int(size)
    if list(sizes.values()).count(-1) > 1:
        raise ValueError("only one axis can be -1, the rest of the devices")
    return dict.fromkeys(MESH_AXES, 1) | sizes


def as_mesh(mesh: AnyMesh | str | Mapping[str, int]) -> AnyMesh | Mesh:
    """The mesh that a text such as "tensor=2" or a mapping of sizes stands for; meshes and None as they are.

    Raises:
        ValueError: the text is not of this form, or does not use the devices.
    """
    if not isinstance(mesh, str):
        return make_mesh(**cast("Any", mesh)) if isinstance(mesh, Mapping) else mesh
    try:
        sizes = mesh_sizes(mesh)
    except ValueError as error:
        raise ValueError(f'mesh="{mesh}" is not a mesh: {error}.') from error
    return make_mesh(sizes["data"], sizes["fsdp"], sizes["tensor"])


def platform() -> str:
    """Return the platform that the program being traced will run on: "cpu", "gpu" or "tpu"."""
    device = get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def shapes_on(mesh: Mesh | AbstractMesh | None, function: Callable[..., Any], *args: Any) -> Any:
    """Return what `function` gives on a mesh as `jax.ShapeDtypeStruct`s with shardings, without computing anything."""

    def placed(x: Any) -> jax.ShapeDtypeStruct:
        if mesh is None:
            return jax.ShapeDtypeStruct(x.shape, x.dtype)
        layout = PartitionSpec() if x.sharding is None else x.sharding.spec
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, layout))

    with on_mesh(mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh):
        return jax.tree.map(placed, jax.eval_shape(function, *args))


def spec(*logical_axes: str | None) -> PartitionSpec | None:
    """The partition spec of an array with these logical axes on the current mesh; None where there is no mesh."""
    if get_abstract_mesh().empty:
        return None
    return PartitionSpec(*(LOGICAL_AXES.get(axis) if axis else None for axis in logical_axes))


def parameter_spec(shape: tuple[int, ...], logical_axes: tuple[str | None, ...]) -> PartitionSpec | None:
    """The partition spec of a parameter. An axis that does not divide evenly is whole on every device."""
    pairs = zip(shape, logical_axes, strict=True)
    return spec(*(axis if axis and size % shards(axis) == 0 else None for size, axis in pairs))


def shards(logical_axis: str) -> int:
    """Number of pieces that the current mesh splits a logical axis into; 1 where there is no mesh."""
    mesh, axes = get_abstract_mesh(), LOGICAL_AXES.get(logical_axis, ())
    if mesh.empty:
        return 1
    return math.prod(mesh.shape[axis] for axis in ([axes] if isinstance(axes, str) else axes))


def constrain(x: Array, *logical_axes: str | None) -> Array:
    """`x` laid out by its logical axes."""
    target = spec(*logical_axes)
    return x if target is None else reshard(x, target)


def reshape(x: Array, shape: tuple[int, ...], *logical_axes: str | None) -> Array:
    """`x` in another shape, whose logical axes are named: JAX does not guess the layout where axes split or merge."""
    return jax.lax.reshape(x, shape, out_sharding=spec(*logical_axes))


def row_specs(tree: Any) -> Any:
    """The partition specs of arrays whose first axis is the batch, and of scalars, which are the same everywhere."""
    return jax.tree.map(lambda x: spec("batch") if x.ndim else spec(), tree)


def per_shard(
    function: Callable[..., Any], in_specs: Any, out_specs: Any, check_vma: bool = True
) -> Callable[..., Any]:
    """`function` as each device runs it on its own part of the arrays; itself where there is no mesh.

    Args:
        check_vma: False for kernels, which do not say over which axes their results differ.
    """
    if get_abstract_mesh().empty:
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma)


def mesh_of(tree) -> Mesh | AbstractMesh | None:
    """The mesh that the arrays of `tree` are sharded over (an abstract one inside `jax.jit`); None without one."""
    for leaf in jax.tree.leaves(tree):
        sharding = leaf.sharding if hasattr(leaf, "sharding") else jax.typeof(leaf).sharding  # traced: by its type
        mesh = getattr(sharding, "mesh", None)
        if mesh is not None and mesh.axis_names == MESH_AXES:
            return mesh
    return None


def on_mesh(mesh: Mesh | AbstractMesh | None) -> contextlib.AbstractContextManager:
    """Makes `mesh` the current one; None changes nothing."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.set_mesh(mesh) if isinstance(mesh, Mesh) else use_abstract_mesh(mesh)


def on_mesh_of(tree) -> contextlib.AbstractContextManager:
    """Makes the mesh of `tree`'s arrays the current one, if there is none yet; inside `jax.jit` and outside."""
    return on_mesh(mesh_of(tree) if get_abstract_mesh().empty else None)
