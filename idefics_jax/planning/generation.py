"""Plan of a call of `generate` on a pod, by the TPU compiler, on any machine: no weight is read, no array made."""

from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

from idefics_jax.config import IdeficsConfig
from idefics_jax.cost.pods import Compiled, compiled, pod_devices
from idefics_jax.parallel.hardware import Chip, chip
from idefics_jax.parallel.mesh import make_mesh
from idefics_jax.planning.lowering import lower


class Program(NamedTuple):
    """A program of a call, compiled.

    Attributes:
        name: "images", "prefill" or "decode".
        runs: how often the call runs it; of decoding, the most steps that there are, each a token of every answer.
        compiled: what the compiler says of it; of decoding, the cost of one step.
        beside: bytes of weights on each device that it does not use.
        model_flops: of one run, or step, on one device, for what is not padding.
    """

    name: str
    runs: int
    compiled: Compiled
    beside: int
    model_flops: float

    @property
    def free(self) -> float:
        """Bytes of HBM that are left; negative where they are too few."""
        memory = self.compiled.memory
        return -inf if memory is None else memory.free - self.beside

    @property
    def seconds(self) -> float:
        """Seconds of a run, or of a step; 0 where the program does not fit."""
        return 0.0 if self.compiled.cost is None else self.compiled.cost.step_seconds


class GenerationPlan(NamedTuple):
    """Plan of a call of `generate`.

    Attributes:
        topology, slices: of the pod.
        chip: its devices.
        mesh: sizes by axis.
        devices: of all slices.
        answers: how many there are, those that fill up a bucket included.
        tokens: of the longest prompt.
        images: of all prompts.
        slots: for tokens in the cache, of each answer.
        programs: in the order that they run; the last decodes.
        step_bytes: that a step of decoding cannot do without reading, on one device: weights and caches.
    """

    topology: str
    slices: int
    chip: Chip
    mesh: dict[str, int]
    devices: int
    answers: int
    tokens: int
    images: int
    slots: int
    programs: tuple[Program, ...]
    step_bytes: int

    @property
    def fits(self) -> bool:
        """True if every program fits."""
        return all(program.free >= 0 for program in self.programs)

    @property
    def reading(self) -> tuple[Program, ...]:
        """The programs that read the prompts."""
        return self.programs[:-1]

    @property
    def decoding(self) -> Program:
        """The program that adds tokens."""
        return self.programs[-1]

    @property
    def reading_seconds(self) -> float:
        """From the prompts to the scores of the first new tokens."""
        return sum(program.runs * program.seconds for program in self.reading)

    @property
    def reading_mfu(self) -> float:
        """The share of the devices' peak that reading the prompts makes up."""
        flops = sum(program.runs * program.model_flops for program in self.reading)
        return flops / self.chip.peak_flops / self.reading_seconds if self.reading_seconds else 0.0

    @property
    def traffic(self) -> float:
        """Bytes that a step of decoding moves between HBM and the chip, over those that it must."""
        cost = self.decoding.compiled.cost
        return 0.0 if cost is None else cost.hbm_bytes / self.step_bytes


def plan_generation(
    config: IdeficsConfig,
    inputs: dict[str, Any],
    *,
    topology: str,
    slices: int,
    mesh: dict[str, int],
    max_new_tokens: int,
    do_sample: bool = False,
    num_return_sequences: int = 1,
    bad_words_ids: Sequence[Sequence[int]] = (),
    stop_strings: Sequence[str] = (),
    tokenizer: Any = None,
) -> GenerationPlan:
    """Compiles what `generate` would run on a pod for these prompts, were they all one process's.

    Args:
        config: with the dtype of computation.
        inputs: arrays, by the names that `generate` has for them. Their values do not matter, only what is padding.
        topology: such as "v5e:2x4".
        slices: how many there are of it.
        mesh: what `make_mesh` takes.
        max_new_tokens, do_sample, num_return_sequences, bad_words_ids, stop_strings, tokenizer: as of `generate`, of
            whose settings the others change no program.

    Raises:
        ValueError: the compiler is not installed, or knows no such pod; the mesh does not use it; or the inputs do not
            fit each other or the model.
    """
    which, devices = chip(topology), pod_devices(topology, slices)
    grid = make_mesh(**mesh, devices=devices)
    call = lower(
        config,
        grid,
        inputs,
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        copies=num_return_sequences,
        bad_words_ids=bad_words_ids,
        stop_strings=stop_strings,
        tokenizer=tokenizer,
    )
    programs = []
    for program in call.programs:
        decodes = program.name == "decode"
        turns = None if decodes else call.images  # a prompt's images go into the cache one by one
        found = compiled(program.lowered, which, len(devices) // slices, {}, turn=decodes, turns=turns)
        flops = program.flops / len(devices)
        programs.append(Program(program.name, program.runs, found, program.unused_bytes, flops))
    return GenerationPlan(
        topology=topology,
        slices=slices,
        chip=which,
        mesh=dict(grid.shape),
        devices=len(devices),
        answers=call.answers,
        tokens=call.tokens,
        images=call.images,
        slots=call.slots,
        programs=tuple(programs),
        step_bytes=call.step_bytes,
    )
