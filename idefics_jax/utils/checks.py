"""Checks of arguments: each refusal is one sentence that names the argument and the mend."""

import difflib
import operator
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

LARGEST = 2**31 - 1
# Arguments of transformers' `from_pretrained` that mean nothing here, and what to write instead.
LOADING = {
    "_attn_implementation": "attention is chosen from the shapes and the platform; leave it out",
    "adapter_name": "adapters are not loaded beside a model; merge the adapter into its weights",
    "attn_implementation": "attention is chosen from the shapes and the platform; leave it out",
    "config": "the checkpoint's config.json is read; change that file, or use from_config",
    "device_map": 'pass mesh="tensor=2" or another mesh to use several devices, and leave it out for one',
    "force_download": "delete the checkpoint in the hub's cache to download it again",
    "from_flax": "load safetensors or pytorch_model.bin",
    "from_tf": "load safetensors or pytorch_model.bin",
    "load_in_4bit": 'quantization is not implemented; pass dtype="bfloat16"',
    "load_in_8bit": 'quantization is not implemented; pass dtype="bfloat16"',
    "max_memory": "weights are spread evenly over the mesh; pass mesh=",
    "offload_folder": "weights stay on the devices; spread them over more of them by mesh=",
    "proxies": "set the environment variable HTTPS_PROXY",
    "quantization_config": 'quantization is not implemented; pass dtype="bfloat16"',
    "resume_download": "downloads are always resumed; leave it out",
    "subfolder": "pass the folder itself as the path",
    "trust_remote_code": "no code of a checkpoint is ever run; leave it out",
    "use_auth_token": "pass token=",
    "use_fast": "there is one tokenizer; leave it out",
    "variant": "the files without a variant are read; rename them",
}
# Values of such arguments that ask for nothing.
_NOTHING = (None, False)


class Range(NamedTuple):
    """Numbers that a setting can be.

    Attributes:
        kind: `int`, or `float`, which takes whole numbers too.
        lowest, highest: the ends of the range.
        wanted: the range in words.
    """

    kind: type
    lowest: float
    highest: float
    wanted: str


def whole(lowest: int, highest: int = LARGEST) -> Range:
    """Whole numbers from `lowest` to `highest`."""
    return Range(int, lowest, highest, f"a whole number from {lowest} to {highest:,}")


def refuse(function: str, given: Mapping[str, Any], known: Collection[str], instead: Mapping[str, str]) -> None:
    """Refuses every argument in `given`, except those in `instead` that ask for nothing (None or False).

    Args:
        function: its name, for the sentence.
        given: the arguments that the function has no parameters for.
        known: the names of its parameters, among which the nearest is looked for.
        instead: what to write instead of arguments that are well known elsewhere.

    Raises:
        ValueError: one sentence that names the argument and the mend.
    """
    for name, value in given.items():
        if name in instead:
            if not any(value is nothing for nothing in _NOTHING):
                raise ValueError(f"{function} does not take {name}: {instead[name]}.")
            continue
        nearest = difflib.get_close_matches(name, [*known, *instead], n=1, cutoff=0.7)
        if not nearest:
            raise ValueError(f"{function} does not take {name}; leave it out.")
        raise ValueError(f"{function} does not take {name}; did you mean {nearest[0]}?")


def shown(value: Any) -> str:
    """A value as an error sentence shows it: short, whatever it is."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"a number of {int(value.bit_length() * 0.30103) + 1:,} digits"
    text = repr(value).splitlines()[0]
    return text if len(text) <= 60 else f"{text[:57]}..."


def number(name: str, value: Any, limits: Range) -> int | float:
    """The value as Python's number; NumPy's and JAX's scalars are taken too.

    Raises:
        ValueError: it is no number, or outside `limits`.
    """
    try:
        if isinstance(value, bool | np.bool_ | str | bytes):
            raise TypeError
        result = operator.index(value) if limits.kind is int else float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {shown(value)}; it must be {limits.wanted}.") from None
    if not limits.lowest <= result <= limits.highest:  # not a number is not
        raise ValueError(f"{name} is {shown(value)}; it must be {limits.wanted}.")
    return result


def check_text(text: str, name: str) -> None:
    """Checks that a text can be written as UTF-8.

    Raises:
        ValueError: it holds half of a character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} is not valid Unicode: character {error.start + 1:,} is half of a surrogate pair "
            f"({text[error.start]!a}); remove it, or read the text as UTF-8."
        ) from None
