"""Memory that work needs against memory that is free, so that what cannot fit is refused before it is loaded.

Every need is a lower bound: what is refused could not have run. CPU devices share the machine's memory, so the needs of
all of a process's devices add up there; an accelerator has its own.

On a CPU the XLA of JAX 0.10 multiplies in float32: a program with 16-bit weights holds float32 copies of all of them
while it runs, so that 16 bits take more memory there than float32: 6 bytes a weight. JAX 0.11 and 0.12 hold none.
"""

import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from idefics_jax.config import IdeficsConfig

#: Environment variable: gigabytes that count as free, instead of what the machine says; `inf` refuses nothing.
FREE_GB = "IDEFICS_JAX_FREE_GB"
WIDE = 4  # bytes of a float32
#: True if XLA copies 16-bit weights into float32 ones on a CPU, all at once (read in compiled programs of JAX 0.10.2,
#: 0.11.2 and 0.12.0).
CPU_WIDENS_WEIGHTS = jax.__version_info__ < (0, 11)


class Request(NamedTuple):
    """Sizes of a call of `generate`, padding included.

    Attributes:
        prompts: rows that are read.
        answers: rows that are decoded: prompts times beams, or times answers to each.
        tokens: of the longest prompt.
        slots: for tokens in each row's cache.
        image_slots: for vectors of images in each prompt's cache.
    """

    prompts: int
    answers: int
    tokens: int
    slots: int
    image_slots: int


def check_memory(
    subject: str,
    needs: Mapping[str, int],
    mesh: Mesh | AbstractMesh | None = None,
    dtype: str = "",
    mends: Sequence[str] | None = None,
) -> None:
    """Refuse what cannot fit into the memory of this process's devices.

    Args:
        subject: the sentence's, such as a checkpoint's path.
        needs: bytes by purpose, as `bytes_of` counts them.
        mesh: of the devices; default: the first device.
        dtype: of the weights.
        mends: what would need less; default: generation's.

    Raises:
        ValueError: the sum is more than what is free, with what is needed, what is free and the mend.
    """
    devices, total = _local_devices(mesh), sum(needs.values())
    if not devices or not total:
        return
    if mends is None:
        large = any("weights" not in purpose and need > total / 4 for purpose, need in needs.items())
        mends = ["ask for fewer beams, prompts or tokens at once"] if large else []
    if _on_cpu(devices):
        check_machine(subject, needs, mends)
        return
    narrower = ["compute in bfloat16"] if dtype == "float32" else []
    mends = [*mends, *narrower, "share it among more devices with a mesh"]
    _refuse(subject, needs, _free(devices), f"on each {devices[0].device_kind}", mends)


def check_machine(subject: str, needs: Mapping[str, int], mends: Sequence[str] = ()) -> None:
    """Refuse what cannot fit into the machine's own memory.

    Raises:
        ValueError: as `check_memory`.
    """
    _refuse(subject, needs, free_memory(), "on this machine", [*mends, "use a machine with more memory"])


def free_memory() -> int | None:
    """Bytes of the machine's memory that are free or count as such; None if unknown, or if all may be asked for."""
    return _free_as_set() if FREE_GB in os.environ else machine_memory()


def _refuse(subject: str, needs: Mapping[str, int], free: int | None, where: str, mends: Sequence[str]) -> None:
    total = sum(needs.values())
    if free is None or total <= free:
        return
    parts = ", ".join(f"{_in_words(need)} for {purpose}" for purpose, need in needs.items() if need > total / 100)
    raise ValueError(
        f"{subject} needs {_in_words(total)} of memory ({parts}), and {_in_words(free)} are free {where}; "
        f"{', or '.join(mends)} (the environment variable {FREE_GB} sets how many gigabytes count as free)."
    )


def weight_needs(model: Any, mesh: Mesh | AbstractMesh | None = None) -> dict[str, int]:
    """The weights of a model, or of its shapes, as `check_memory` takes them."""
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(model)})
    return {f"weights in {' and '.join(dtypes)}": bytes_of(model, mesh)}


def request_needs(model: Any, mesh: Mesh | AbstractMesh | None, request: Request) -> dict[str, int]:
    """Return what a call of `generate` needs beside the weights: caches, scores and, on a CPU, float32 copies.

    Args:
        model: an `IdeficsForVisionText2Text`, or its shapes.
    """
    config: IdeficsConfig = model.config
    width = jnp.dtype(config.dtype).itemsize
    groups = config.num_hidden_layers // config.cross_layer_interval
    numbers = 2 * config.hidden_size * config.num_hidden_layers * request.answers * request.slots  # keys and values
    of_images = 2 * config.hidden_size * groups * request.prompts * request.image_slots
    vocabulary = config.vocab_size + config.additional_vocab_size
    logits = WIDE * request.answers * vocabulary
    needs = {f"caches of {request.answers:,} rows": _share((numbers + of_images) * width + logits, mesh)}
    if not _on_cpu(_local_devices(mesh)):
        return needs
    attention = WIDE * request.prompts * config.num_attention_heads * request.tokens**2  # one layer's, in prefill
    copies = WIDE * numbers if width < WIDE else 0  # of the cache, in decoding
    needs["temporary values"] = _share(max(attention, copies), mesh)
    narrow = [leaf for leaf in jax.tree.leaves((model.model.decoder, model.head)) if leaf.dtype.itemsize < WIDE]
    if narrow and CPU_WIDENS_WEIGHTS:
        needs["float32 copies of weights, which XLA makes on a CPU"] = sum(
            bytes_of(leaf, mesh) // leaf.dtype.itemsize * WIDE for leaf in narrow
        )
    return needs


def program_needs(program: jax.stages.Compiled, mesh: Mesh | None) -> dict[str, int]:
    """Return what a program compiled for CPUs needs beside its arguments, on all devices of this process."""
    found = program.memory_analysis()
    assert found is not None, "XLA's compiler for CPUs always says"
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return {"temporary values": len(_local_devices(mesh)) * (found.temp_size_in_bytes + results)}


def bytes_of(tree: Any, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Bytes of arrays, or of their shapes: on one accelerator, or on all of this process's CPU devices together."""
    devices = _local_devices(mesh)
    copies = max(len(devices), 1) if _on_cpu(devices) else 1

    def shard(leaf: Any) -> tuple[int, ...]:
        sharding = getattr(leaf, "sharding", None)
        return sharding.shard_shape(leaf.shape) if isinstance(sharding, NamedSharding) else leaf.shape

    return copies * sum(prod(shard(leaf)) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def machine_memory(root: Path = Path("/")) -> int | None:
    """Bytes of the machine that this process can still take: what Linux has available, within every control group.

    Args:
        root: directory that has `proc` and `sys`.

    Returns:
        None where the system does not say.
    """
    found = [_available(root / "proc" / "meminfo"), *_groups(root)]
    known = [size for size in found if size is not None]
    if known:
        return max(0, min(known))
    try:  # other systems say at most how much there is in all
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if root == Path("/") else None
    except (AttributeError, ValueError, OSError):
        return None


def _available(meminfo: Path) -> int | None:
    sizes = _numbers(meminfo)
    return sizes["MemAvailable:"] * 1024 if "MemAvailable:" in sizes else None


def _groups(root: Path) -> list[int | None]:
    """Return what is left within each control group's limit, of version 1 and 2; page cache can be taken back."""
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    mount, left = root / "sys" / "fs" / "cgroup", []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            base, limit, used, prefix = mount, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            base, limit, used, prefix = mount / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        # Within a container the group's own name may not exist under the mount, which is the group then.
        own = base / name.lstrip("/")
        for group in (own, *own.parents):
            most, taken, usage = _number(group / limit), _number(group / used), _numbers(group / "memory.stat")
            if most is not None and taken is not None:
                cached = sum(usage.get(f"{prefix}{kind}_file", 0) for kind in ("inactive", "active"))
                left.append(most - max(0, taken - cached))
            if group == base:
                break
    return left


def _number(file: Path) -> int | None:
    """The number in a file; None where there is none, as in `max`."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _numbers(file: Path) -> dict[str, int]:
    """The numbers of a file by the words before them."""
    try:
        rows = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _free_as_set() -> int | None:
    """Bytes that the environment variable counts as free; None: all that are asked for."""
    text = os.environ[FREE_GB]
    try:
        size = float(text)
    except ValueError:
        size = -1.0
    if not size >= 0:
        raise ValueError(f"{FREE_GB} must be a number of gigabytes, such as 24, or inf, and is {text!r}.")
    return None if size == float("inf") else int(size * 1e9)


def _free(accelerators: list[Any]) -> int | None:
    """Bytes that are free on the fullest accelerator; None if unknown."""
    if FREE_GB in os.environ:
        return _free_as_set()
    stats = [device.memory_stats() or {} for device in accelerators]
    if not all("bytes_limit" in found for found in stats):
        return None
    return min(found["bytes_limit"] - found.get("bytes_in_use", 0) for found in stats)


def _local_devices(mesh: Any) -> list[Any]:
    """The devices of this process; none of an abstract mesh, or of a pod that is not there."""
    if mesh is None:
        return jax.local_devices()[:1]
    here = set(jax.local_devices())
    return [device for device in mesh.devices.flat if device in here] if isinstance(mesh, Mesh) else []


def _on_cpu(devices: list[Any]) -> bool:
    return bool(devices) and devices[0].platform == "cpu"


def _share(size: int, mesh: Any) -> int:
    """The part of `size` bytes, spread evenly over a mesh, that `bytes_of` would count."""
    devices = _local_devices(mesh)
    if mesh is None or not devices:
        return size
    return size * (len(devices) if _on_cpu(devices) else 1) // mesh.size


def _in_words(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
