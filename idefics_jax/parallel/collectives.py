"""The grid that a TPU slice's devices are, and collectives over `fsdp` that go along its sides, one after the other.

Over several sides at once the TPU compiler knows only sums that every device gets whole, twice the bytes of what each
needs. `fsdp` numbers the devices of a grid row by row, as `tiled` does.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import get_abstract_mesh
from jaxtyping import Array

#: Kinds of devices that have SparseCores, which exchange weights and gradients while the rest of the chip computes.
SPARSE_CORES = ("TPU v5", "TPU v5p", "TPU v6 lite", "TPU v6e")
#: Kinds of devices whose grids have three dimensions.
CUBES = ("TPU v4", "TPU v5", "TPU v5p")

#: The fewest rows of a product for which a TPU multiplies as fast as it reads what they are multiplied with.
_ROWS = 512


def tiled(devices: list[Any], fsdp: int) -> list[Any] | None:
    """TPU devices slice by slice, and in a slice tile by tile: a tile is the grid that `fsdp` devices are, row by row,
    and its longest side changes most slowly. None where such tiles do not fill the slices."""
    places = np.array([device.coords for device in devices])
    axes = sorted(range(places.shape[1]), key=lambda axis: -len(set(places[:, axis])))
    grid = [len(set(places[:, axis])) for axis in axes]

    def place(device: Any) -> tuple[int, ...]:
        return (getattr(device, "slice_index", 0), *(device.coords[axis] for axis in axes), device.core_on_chip)

    in_order = np.array(sorted(devices, key=place))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if len(devices) == slices * fsdp:
        return in_order.tolist()
    tile = [*sides(fsdp, devices[0]), *(1,) * len(grid)][: len(grid)]
    if len(devices) != slices * math.prod(grid) or any(whole % one for whole, one in zip(grid, tile, strict=True)):
        return None
    split = [size for whole, one in zip(grid, tile, strict=True) for size in (whole // one, one)]
    order = (0, *range(1, 2 * len(grid), 2), *range(2, 2 * len(grid) + 1, 2))
    return in_order.reshape(slices, *split).transpose(order).reshape(-1).tolist()


def sides(devices: int, device: Any = None) -> tuple[int, ...]:
    """The sides of the grid that so many devices are, the longest first, as pods are built: as equal as they can be.

    On a pod of other sides, programs are right, and slower. CPUs count as a TPU of two dimensions does, so that tests
    take the same way; GPUs make no grid.

    Args:
        devices: how many.
        device: one of them; by default of the current mesh's kind.
    """
    device = get_abstract_mesh().abstract_device if device is None else device
    platform, kind = ("cpu", "") if device is None else (device.platform, device.device_kind)
    dimensions = 1 if platform == "gpu" else 3 if kind in CUBES else 2
    found: list[int] = []
    for left in range(dimensions, 0, -1):
        ways = [side for side in range(1, devices + 1) if devices % side == 0 and side**left >= devices]
        found.append(min(ways))
        devices //= found[-1]
    return tuple(side for side in found if side > 1)


def have_sparse_cores() -> bool:
    """Return True if the devices of the current mesh have SparseCores."""
    device = get_abstract_mesh().abstract_device
    return device is not None and device.device_kind in SPARSE_CORES


def gathered(part: Array, axis: int) -> Array:
    """All devices' parts along `axis`; on each device."""
    for lines in reversed(_lines()):
        part = jax.lax.all_gather(part, "fsdp", axis=axis, axis_index_groups=lines, tiled=True)
    return part


def scattered(x: Array, axis: int, done: int = 0) -> Array:
    """Each device's part along `axis` of the sum of what the devices have, of which so many sides are `done`."""
    for lines in _lines()[done:]:
        x = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=axis, axis_index_groups=lines, tiled=True)
    return x


def scattered_product(x: Array, y: Array, rows: int, axis: int) -> Array:
    """`x^T y`, each device's part of the sum of what the devices have: a weight's gradient.

    Without SparseCores a TPU waits while it adds up. Where the parts are large enough to be multiplied one by one, the
    sums over the longest side therefore go round a ring, while the devices multiply what they add to them next.

    Args:
        x: `[*rows, *xs]`.
        y: `[*rows, *ys]`.
        rows: how many axes those are.
        axis: of the result `[*xs, *ys]`, along which it is scattered.
    """
    lines, columns = _lines()[0], (*x.shape[rows:], *y.shape[rows:])
    halved = x.ndim - rows if axis < x.ndim - rows else 0  # the first axis of the operand that is not scattered
    part, half = columns[axis] // len(lines[0]), np.prod(columns[halved:] if halved else columns[: x.ndim - rows]) // 2
    if have_sparse_cores() or min(part, half) < _ROWS or columns[halved] % 2:
        summed = tuple(range(rows))
        return scattered(jax.lax.dot_general(x, y, ((summed, summed), ((), ()))), axis)
    halves = _round_the_ring(x, y, rows, axis, halved, lines)
    return jnp.concatenate([scattered(half, axis, done=1) for half in halves], axis=halved)


def _round_the_ring(x: Array, y: Array, rows: int, axis: int, halved: int, lines: list[list[int]]) -> tuple[Array, ...]:
    """The sums over the lines of `scattered_product`, in two halves along the result's axis `halved`.

    Two rings, one each way, take turns: while the sum of one half goes on to the next device, the other half's product
    is added to its sum. A device begins with the part that is the one before's (the next one's, the other way round),
    and after as many products as there are devices has the sum of its own.
    """
    places = ring(len(lines[0]))
    devices = len(places)
    onward = [(line[places[at - 1]], line[places[at]]) for line in lines for at in range(devices)]
    ways = (onward, [(after, before) for before, after in onward])
    at_of = np.empty(sum(map(len, lines)), np.int32)
    for line in lines:
        at_of[line] = np.argsort(places)
    at = jnp.asarray(at_of)[jax.lax.axis_index("fsdp")]
    summed = tuple(range(rows))

    def cut(number: int | Array, pieces: int, along: int) -> Array:
        """Return one of `pieces` of the operand that has the result's axis `along`."""
        operand, along = (x, rows + along) if along < x.ndim - rows else (y, rows + along - (x.ndim - rows))
        size = operand.shape[along] // pieces
        return jax.lax.dynamic_slice_in_dim(operand, number * size, size, along)

    def product(step: int | Array, half: int) -> Array:
        steps = step + 1 if half else -1 - step
        one = cut(jnp.asarray(places)[jnp.mod(at + steps, devices)], devices, axis)
        # The barrier keeps XLA from cutting the halves before the loop, which would copy them.
        other = cut(jax.lax.optimization_barrier((half, step))[0], 2, halved)
        left, right = (one, other) if axis < halved else (other, one)
        return jax.lax.dot_general(left, right, ((summed, summed), ((), ())), preferred_element_type=jnp.float32)

    def add(step: int | Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        come = [jax.lax.ppermute(each, "fsdp", way) for each, way in zip(sums, ways, strict=True)]
        return tuple((each + product(step, half)).astype(x.dtype) for half, each in enumerate(come))

    return jax.lax.fori_loop(1, devices, add, tuple(product(0, half).astype(x.dtype) for half in range(2)))


def ring(devices: int) -> list[int]:
    """The order of so many devices in a line in which each is near the next, and the last near the first.

    Sides of 16 are closed on TPUs of two dimensions. On shorter ones it goes up by every other device and comes back by
    the rest.
    """
    if devices == 16:
        return list(range(devices))
    return [*range(0, devices, 2), *reversed(range(1, devices, 2))]


def _lines() -> list[list[list[int]]]:
    """For each side of the grid, the longest first, the lines of devices along it, by their numbers in `fsdp`."""
    grid = sides(get_abstract_mesh().shape["fsdp"])
    numbers = np.arange(np.prod(grid)).reshape(grid)
    return [np.moveaxis(numbers, side, -1).reshape(-1, grid[side]).tolist() for side in range(len(grid))]
