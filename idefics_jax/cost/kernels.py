"""FLOPs of the Pallas kernels that our programs use, which carry no estimate of their own."""

from idefics_jax.cost.hlo import Instruction, arrays
from idefics_jax.flash import block_size

#: Matrix products that each of the splash kernels makes for a block of scores.
_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}


def kernel_flops(op: Instruction) -> float | None:
    """Of an attention kernel: of the blocks that it computes, by its name and shape. None of any other.

    Rows of several blocks are taken to be attended to causally; the vision tower's have one.
    """
    products = next((count for name, count in _PRODUCTS.items() if op.name.startswith(name)), None)
    # [rows, heads, t, head_dim]; the compiler leaves out a single row's axis.
    shapes = [(*(1,) * (4 - len(array.dims)), *array.dims) for array in arrays(op.shape) if len(array.dims) in (3, 4)]
    if products is None or not shapes:
        return None
    rows, heads, length, head_dim = max(shapes)
    blocks = length // block_size(length)
    return products * 2 * rows * heads * head_dim * length**2 * (blocks + 1) / (2 * blocks)
