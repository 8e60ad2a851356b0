"""How long the attention kernels of `idefics_jax` take on TPUs, by the compiler's own schedule of them.

    python -m benchmarks.kernels

For each chip and kernel: cycles to start a block of scores, and for each tile of 128 x 128 scores in it, as
`idefics_jax.cost.kernels` has them. The compiler says nothing of what kernels cost, but writes down their instructions,
one bundle for each cycle. A matrix unit is busy for longer with some of its instructions than their bundles last:
where the next one comes too soon, it waits.
"""

import os
import re
import tempfile
from pathlib import Path

_DIRECTORY = tempfile.TemporaryDirectory()
DUMPS = Path(_DIRECTORY.name)
os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={DUMPS} --xla_jf_dump_llo_text=true"  # read when JAX is imported

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402

from idefics_jax.cost import chip, words  # noqa: E402
from idefics_jax.cost.kernels import CORES, SCHEDULES  # noqa: E402
from idefics_jax.cost.pods import pod_devices  # noqa: E402
from idefics_jax.kernels.cross_attention import attend_to_images  # noqa: E402
from idefics_jax.kernels.splash import LANES, flash_attention, segments  # noqa: E402
from idefics_jax.parallel import hardware  # noqa: E402

#: A small pod of each chip, and its matrix units: how many, and how wide.
CHIPS = {"v5e": ("2x2", 4, 128), "v5p": ("2x2x1", 4, 128), "v6e": ("2x2", 2, 256), "tpu7x": ("2x2x1", 2, 256)}
LENGTHS = (512, 1024)  # of one block each
KEYS = 256  # of four images
ROWS = {"bf16": 16, "f32": 8}  # in a vector register of 4 KiB


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    print(*words.table(("chip", "kernel", "cycles to start a block", "and for a tile"), []), sep="\n")
    for name in CHIPS:
        short, long = (blocks(name, length) for length in LENGTHS)
        for kernel in SCHEDULES[name]:
            small, large = (length * (KEYS if "image" in kernel else length) // LANES**2 for length in LENGTHS)
            tile = (long[kernel] - short[kernel]) / (large - small)
            print(f"| {name} | {kernel} | {short[kernel] - tile * small:.0f} | {tile:.1f} |", flush=True)


def blocks(name: str, length: int) -> dict[str, int]:
    """Cycles of the forward and the backward pass for one head's block of `length` queries and keys."""
    topology, units, width = CHIPS[name]
    devices = pod_devices(f"{name}:{topology}", 1)
    place = SingleDeviceSharding(devices[0])
    rows = jax.ShapeDtypeStruct((2, length, 8, LANES), jnp.bfloat16, sharding=place)
    heads, images = (
        jax.ShapeDtypeStruct((2, 8, count, LANES), jnp.bfloat16, sharding=place) for count in (length, KEYS)
    )
    valid, sees = (jax.ShapeDtypeStruct((2, length, *more), jnp.bool, sharding=place) for more in ((), (KEYS,)))

    def step(query, key, value, valid, image_key, image_value, sees, gradient):
        def attend(query, key, value, image_key, image_value):
            query = flash_attention(query, key, value, segments(valid, None))
            return attend_to_images(query, image_key, image_value, sees)

        y, backward = jax.vjp(attend, query, key, value, image_key, image_value)
        return y, backward(gradient)

    program = jax.jit(step).lower(rows, heads, heads, valid, images, images, sees, rows)
    program.compile(compiler_options=hardware.TRAINING[name])
    # A kernel's bundles are one core's, of the cores that share a device's FLOPs.
    unit_flops_per_cycle = chip(name).flops_per_cycle / CORES.get(name, 1) / units
    row_cycles = 2 * width**2 / unit_flops_per_cycle
    bundles = {kernel: next(DUMPS.glob(f"*{kernel}*-final_bundles.txt")) for kernel in SCHEDULES[name]}
    found = {kernel: cycles(path.read_text(), row_cycles) for kernel, path in bundles.items()}
    for path in DUMPS.iterdir():
        path.unlink()
    return found


def cycles(bundles: str, row_cycles: float) -> int:
    """Of all bundles one after the other, where each row of a product takes its matrix unit `row_cycles`."""
    now, free = 0.0, dict[str, float]()
    for line in bundles.splitlines():
        if not re.match(r"\s*0x", line):
            continue
        for dtype, unit in re.findall(r"vmatmul\.(?:mubr\.)?(\w+)\S*\.mxu(\d)", line):
            now = max(now, free.get(unit, 0.0))
            free[unit] = now + ROWS[dtype] * row_cycles
        now += 1
    return round(now)


if __name__ == "__main__":
    main()
