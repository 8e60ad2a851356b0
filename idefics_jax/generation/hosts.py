"""Several processes, one on each host of a pod, that generate together: the only file that knows of them.

The devices of all run one program, so all processes must call the same ones, with the same shapes and settings. What
each was given becomes one batch, the prompts of process 0 first: `share` gives every process all tokens and masks,
which are small, so that all plan alike. Images stay where they are and are read by their process's own devices, unless
the mesh gives several processes the same rows. Where one process has the whole mesh, nothing here changes anything.
"""

import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, get_mesh
from jaxtyping import Array

from idefics_jax.generation.buckets import bucket
from idefics_jax.generation.prompts import Prompts
from idefics_jax.parallel.mesh import row_specs

MESSAGE = 4096  # fewest bytes that are exchanged: messages of a few sizes compile few programs
PER_PROMPT = ("tokens", "valid", "image_mask")


class Hosts:
    """The processes that a mesh is spread over.

    Attributes:
        several: whether there are others than this one.
        apart: whether each has devices for rows of its own, so that it can read its own images.

    Raises:
        ValueError: the mesh is over some of the program's processes, not all.
    """

    def __init__(self, mesh: Mesh | AbstractMesh | None):
        devices = mesh.devices if isinstance(mesh, Mesh) else np.empty((0, 1), object)
        processes = sorted({device.process_index for device in devices.flat})
        self.several = len(processes) > 1
        self.apart = self.several and _own_rows(devices)
        if self.several and len(processes) < jax.process_count():
            raise ValueError(
                f"The model is on the devices of processes {processes}, of {jax.process_count()}; "
                "put it on those of one process or of all."
            )

    @contextmanager
    def errors_shared(self) -> Iterator[None]:
        """While it is open, an error ends the call in all processes, so that none waits for another."""
        try:
            yield
        except Exception as error:
            if self.several:
                _exchange({"error": np.array(str(error))})
            raise

    def check(self, check: Callable[[], None]) -> None:
        """Check what may differ between processes, such as free memory: an error of one ends the call in all."""
        with self.errors_shared():
            check()
        if self.several:
            _exchange({})

    def share(self, prompts: Prompts, settings: Any) -> Prompts:
        """The prompts of all processes as one batch, the same in all.

        Args:
            prompts: this process's own, perhaps none.
            settings: arrays and values with a `repr`, which must be the same in all.

        Raises:
            ValueError: another process's error, or settings or kinds of inputs that differ.
        """
        if not self.several:
            return prompts
        message = {name: getattr(prompts, name) for name in PER_PROMPT}
        message["settings"] = np.array(zlib.crc32(repr(jax.tree.map(_bytes, settings)).encode()))
        if prompts.embeds is not None:
            message["embeds"] = prompts.embeds.astype(np.float32)  # exact for the shorter ones
        if prompts.images is not None:
            message |= {"images_are": np.array(prompts.images_are), "shape": np.array(prompts.images.shape[2:])}
            if not self.apart:
                message["images"] = prompts.images.astype(np.float32)
        return _joined(_exchange(message), prompts, self.apart)


def _own_rows(devices: np.ndarray) -> bool:
    """Return True if each row of a batch is on devices of one process, and all processes have as many rows."""
    owners = [{device.process_index for device in row} for row in devices.reshape(-1, devices.shape[-1])]
    counts = Counter(process for row in owners for process in row)
    return all(len(row) == 1 for row in owners) and len(set(counts.values())) == 1


def _bytes(value: Any) -> Any:
    return value.tobytes() if isinstance(value, np.ndarray | np.generic) else value


def _exchange(message: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The messages of all processes, each of which must send one.

    Raises:
        ValueError: one of them is an error, which ends the call in all.
    """
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **message)
    sent = np.frombuffer(file.getvalue(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(sent)))
    received = multihost_utils.process_allgather(np.pad(sent, (0, bucket(int(sizes.max()), MESSAGE) - len(sent))))
    messages = []
    for data, size in zip(received, sizes, strict=True):
        with np.load(io.BytesIO(data[:size].tobytes())) as archive:
            messages.append(dict(archive))
    if "error" not in message:
        for process, other in enumerate(messages):
            if "error" in other:
                raise ValueError(f"Process {process} cannot take part: {other['error']}")
    return messages


def _joined(messages: list[dict[str, np.ndarray]], own: Prompts, apart: bool) -> Prompts:
    filled = [message for message in messages if len(message["tokens"])]
    seen = [message for message in filled if "images_are" in message]
    for part, what, among in (
        ("settings", "settings of generate", messages),
        ("embeds", "of input_ids and inputs_embeds", filled),
        ("images_are", "kind of images", seen),
        ("shape", "size of images", seen),
    ):
        given = {"given" if part == "embeds" and part in message else str(message.get(part)) for message in among}
        if len(given) > 1:
            raise ValueError(f"All processes must give the same {what}; they differ.")
    if not filled:
        raise ValueError("No process has a prompt; pass at least one.")
    tokens, valid, image_mask = (_stacked([message[name] for message in messages]) for name in PER_PROMPT)
    ends = np.cumsum([len(message["tokens"]) for message in messages])
    rows = tuple(
        slice(int(end) - len(message["tokens"]), int(end)) for end, message in zip(ends, messages, strict=True)
    )
    embeds = [message["embeds"] for message in filled if "embeds" in message]
    images = own.images
    if seen and not apart:
        images = _stacked([_images(message, seen[0]["shape"]) for message in messages])
    elif seen and images is None:
        images = np.zeros((len(own.tokens), 0, *seen[0]["shape"]), np.float32)
    mine = rows[jax.process_index()]
    return Prompts(
        tokens,
        _stacked(embeds) if embeds else None,
        valid,
        image_mask,
        images,
        str(seen[0]["images_are"]) if seen else own.images_are,
        own=mine,
        readers=rows if apart else (slice(0, len(tokens)),),
        reader=jax.process_index() if apart else 0,
    )


def _images(message: dict[str, np.ndarray], shape: np.ndarray) -> np.ndarray:
    return message.get("images", np.zeros((len(message["tokens"]), 0, *shape), np.float32))


def _stacked(arrays: list[np.ndarray]) -> np.ndarray:
    """`[b, n, ...]` of several `b` and `n`, and for masks of several last axes, as one; zeros fill up."""
    shape = np.max([array.shape[1:] for array in arrays], axis=0)
    return np.concatenate(
        [
            np.pad(array, ((0, 0), *[(0, most - size) for most, size in zip(shape, array.shape[1:], strict=True)]))
            for array in arrays
        ]
    )


def place(array: np.ndarray | np.generic, parts: int = 1) -> Array:
    """A host's array on the mesh, its first axis split as the batch is, a scalar everywhere; or on the one device.

    Args:
        array: the same in all processes; or with `parts`, one of as many equal parts, each from another process.
    """
    mesh = get_mesh()
    if mesh.empty:
        return jax.device_put(array)
    sharding = NamedSharding(mesh, row_specs(array))
    return jax.make_array_from_process_local_data(sharding, array, None if parts > 1 else array.shape)


def fetch(tree: Any) -> Any:
    """Arrays on the mesh as numpy arrays, whole in every process."""
    if not all(x.is_fully_addressable for x in jax.tree.leaves(tree)):
        tree = _everywhere(tree)
    return jax.device_get(tree)


@jax.jit
def _everywhere(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.reshard(x, PartitionSpec()), tree)
