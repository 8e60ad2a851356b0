"""What the attention kernels of our programs cost, which carry no estimate of their own."""

import math
from typing import NamedTuple

from idefics_jax.cost.hlo import Instruction, arrays
from idefics_jax.kernels.cross_attention import tokens_at_a_time
from idefics_jax.kernels.splash import LANES, attended_at_a_time
from idefics_jax.parallel.hardware import Chip


class Schedule(NamedTuple):
    """Cycles of a kernel: to start a block of scores, and for each tile of 128 x 128 in it with heads of up to 128."""

    start: float
    tile: float


#: The forward and the backward pass of each chip, by the compiler's schedule of their instructions; printed by
#: `python -m benchmarks.kernels` with libtpu 0.0.50.
SCHEDULES = {
    "v5e": {
        "splash_mha_fwd": Schedule(503, 81.2),
        "splash_mha_dkv": Schedule(341, 168.2),
        "image_attention_fwd": Schedule(427, 74.8),
        "image_attention_bwd": Schedule(953, 151.5),
    },
    "v5p": {
        "splash_mha_fwd": Schedule(771, 82.2),
        "splash_mha_dkv": Schedule(744, 168.3),
        "image_attention_fwd": Schedule(576, 75.2),
        "image_attention_bwd": Schedule(1125, 152.1),
    },
    "v6e": {
        "splash_mha_fwd": Schedule(347, 58.3),
        "splash_mha_dkv": Schedule(394, 96.0),
        "image_attention_fwd": Schedule(598, 34.6),
        "image_attention_bwd": Schedule(852, 98.1),
    },
    "tpu7x": {
        "splash_mha_fwd": Schedule(362, 58.7),
        "splash_mha_dkv": Schedule(352, 96.2),
        "image_attention_fwd": Schedule(588, 37.2),
        "image_attention_bwd": Schedule(837, 98.2),
    },
}

#: Cores that a device has, among which a kernel's rows are dealt out.
CORES = {"v5p": 2}


def kernel_cycles(op: Instruction, chip: Chip) -> float | None:
    """Of an attention kernel: of the blocks that it computes, by its name and shape. None of any other.

    Rows of several blocks are taken to be attended to causally; the vision tower's have one.
    """
    schedule = next((each for name, each in SCHEDULES[chip.name].items() if name in op.name), None)
    if schedule is None:
        return None
    given = arrays(op.text.partition("operand_layout_constraints")[2])
    if "image" in op.name:
        mask, key = given[:2]
        (rows, length, keys), (_, heads, _, head_dim) = mask.dims, key.dims
        block = tokens_at_a_time(length, keys)
        blocks = length // block
    else:
        # Of operands, since JAX 0.10's results begin with scratch arrays. The first of floats are the queries:
        # [rows, heads, t, head_dim], or without rows if it is one.
        query = next(each for each in given if each.dtype in ("bf16", "f32"))
        *one_or_more, heads, length, head_dim = query.dims
        rows, block = math.prod(one_or_more), attended_at_a_time(length, int(query.itemsize))
        blocks, keys = (length // block) * (length // block + 1) // 2, block
    tiles = block // LANES * math.ceil(keys / LANES) * math.ceil(head_dim / LANES)
    of_one_core = math.ceil(rows / CORES.get(chip.name, 1))
    return of_one_core * heads * blocks * (schedule.start + schedule.tile * tiles)
