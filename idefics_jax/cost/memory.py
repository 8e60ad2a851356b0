"""How much of a device's memory a compiled program takes."""

from typing import NamedTuple

import jax

from idefics_jax.parallel.hardware import Chip


class Memory(NamedTuple):
    """Bytes on one device, as the compiler laid them out.

    Attributes:
        chip: what a device is.
        arguments: what the program is given: weights, optimizer state, a batch.
        outputs: what it returns.
        aliased: of the outputs, what takes the place of donated arguments.
        temporaries: what else there is at the worst moment. (The compiler's `temp_size_in_bytes` is more than it ever
            allocates: 18.6 GiB for a program that fits a v5e's 15.75.)
        code: of the program itself.
        total: of all together: arrays at the worst moment, code, and, where the compiler says so, gaps between arrays.
    """

    chip: Chip
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    total: int

    @property
    def fits(self) -> bool:
        """Whether the chip's HBM is large enough."""
        return self.free >= 0

    @property
    def free(self) -> int:
        """Bytes of HBM that are left; negative where they are too few."""
        return self.chip.hbm_bytes - self.total


def memory(compiled: jax.stages.Compiled, chip: Chip) -> Memory:
    """What a compiled program takes of each device."""
    found = compiled.memory_analysis()
    assert found is not None, "the TPU compiler always says"
    arguments, outputs = found.argument_size_in_bytes, found.output_size_in_bytes
    aliased, code, peak = found.alias_size_in_bytes, found.generated_code_size_in_bytes, found.peak_memory_in_bytes
    allocated = getattr(found, "total_allocation_bytes", 0)  # since jaxlib 0.11
    temporaries = peak - arguments - outputs + aliased
    return Memory(chip, arguments, outputs, aliased, temporaries, code, max(allocated, peak + code))
