"""How many FLOPs a program's matrix products have, as the compiler emitted them: what is computed twice counts twice.

XLA:TPU writes every matrix product as a convolution, batch dimensions as dimensions of its window.
"""

import re
from math import prod

from idefics_jax.cost.hlo import Computation, Instruction, arrays

_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_FIELD = re.compile(r"(\w+)=(\S+)")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")

PRODUCTS = ("convolution", "dot")


def flops(owner: Computation, product: Instruction) -> int:
    """FLOPs of a convolution or dot, two per multiply-add; products with padding are not counted."""
    left, right = (arrays(owner.by_name[name].shape)[0].dims for name in product.operands[:2])
    out = arrays(product.shape)[0].dims
    labels = _LABELS.search(product.text)
    if labels is None:
        contracted = _CONTRACTED.search(product.text)
        axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
        return 2 * prod(out) * prod(left[axis] for axis in axes)
    lhs, kernel, result = (
        dict(zip(names, dims, strict=True)) for names, dims in zip(labels.groups(), (left, right, out), strict=True)
    )
    window = _WINDOW.search(product.text)
    fields = dict(_FIELD.findall(window[1])) if window else {}
    spatial = [axis for axis in labels[2] if axis.isdigit()]

    def sizes(field: str, default: str) -> list[str]:
        return fields[field].split("x") if field in fields else [default] * len(spatial)

    pairs = [
        _pairs(result[axis], kernel[axis], lhs[axis], int(stride), int(pad.split("_")[0]), int(dilated), int(spread))
        for axis, stride, pad, dilated, spread in zip(
            sorted(spatial),
            sizes("stride", "1"),
            sizes("pad", "0_0"),
            sizes("lhs_dilate", "1"),
            sizes("rhs_dilate", "1"),
            strict=True,
        )
    ]
    return 2 * prod(pairs) * result.get("b", 1) * result.get("f", 1) * kernel.get("i", 1)


def _pairs(out: int, size: int, inputs: int, stride: int, pad: int, dilated: int, spread: int) -> int:
    """How many pairs of an output position and a window position, along one dimension, meet an element of the input.

    Args:
        out: output positions.
        size: window positions.
        inputs: elements of the input.
        stride: of the window.
        pad: before the input; negative where it is cut.
        dilated: distance of input elements.
        spread: distance of window positions.
    """
    span, count = (inputs - 1) * dilated + 1, 0
    for position in range(size):
        first = position * spread - pad  # what the first output reads
        if dilated == stride == 1:
            count += max(0, min(out, span - first) - max(0, -first))
        else:
            read = range(first, first + out * stride, stride)
            count += sum(0 <= at < span and at % dilated == 0 for at in read)
    return count
