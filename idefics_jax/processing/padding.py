"""Padding and truncation of token rows, with the arguments of transformers' tokenizers."""

import math
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from idefics_jax.utils.checks import number, shown, whole

Side = Literal["left", "right"]
MOST_TOKENS = 2**20  # in a row, however it is padded

# Arguments of transformers' tokenizers and processors that mean nothing here, and what to write instead.
INSTEAD = {
    "audio": "IDEFICS reads text and images",
    "debug": "leave it out",
    "device": "arrays go to the model's devices when it is called; leave it out",
    "is_split_into_words": "join the words",
    "prompts": "pass text=",
    "return_attention_mask": "the attention mask is always returned; leave it out",
    "return_offsets_mapping": "call tokenizer.tokenizer.encode(text), which has offsets",
    "return_special_tokens_mask": "compare input_ids with tokenizer.all_special_ids",
    "return_token_type_ids": "the model has no token types; leave it out",
    "text_pair": "join the texts",
    "transform": "pass image_transform=",
    "videos": "IDEFICS reads text and images",
}
_PADDING = {True: "longest", False: "do_not_pad", "longest": "longest", "max_length": "max_length"}
_PADDING |= {"do_not_pad": "do_not_pad"}
_TRUNCATION = {True: True, False: False, None: False, "longest_first": True, "only_first": True}
_TRUNCATION |= {"do_not_truncate": False}
_FRAMEWORKS = {
    "pt": "torch.from_numpy",
    "tf": "tf.constant",
    "mlx": "mx.array",
}


class Padding(NamedTuple):
    """Settings of padding and truncation, checked.

    Attributes:
        padding: "longest", to the longest row; "max_length"; or "do_not_pad".
        side: side that padding goes to.
        multiple: padded lengths are multiples of it.
        truncation: cut rows of more than `max_length` tokens.
        truncation_side: side that is cut off.
        max_length: in tokens.
        noun: plural of the rows, for sentences.
    """

    padding: str
    side: Side
    multiple: int
    truncation: bool
    truncation_side: Side
    max_length: int | None
    noun: str

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        padding: Any,
        padding_side: Any,
        pad_to_multiple_of: Any,
        truncation: Any,
        truncation_side: Any,
        max_length: Any,
        noun: str = "prompts",
    ) -> Self:
        """The settings of arguments of these names; sides are the tokenizer's where they are None.

        Raises:
            ValueError: one sentence that names the argument and its values.
        """
        cut = _chosen("truncation", truncation, _TRUNCATION)
        if cut and max_length is None:
            raise ValueError("truncation=True needs max_length, the number of tokens to keep.")
        pads = _chosen("padding", padding, _PADDING)
        if pads == "max_length" and max_length is None:
            raise ValueError("padding='max_length' needs max_length, the number of tokens to pad to.")
        length, multiple = (
            None if value is None else int(number(name, value, whole(1, MOST_TOKENS)))
            for name, value in (("max_length", max_length), ("pad_to_multiple_of", pad_to_multiple_of))
        )
        return cls(
            padding=pads,
            side=_side("padding_side", padding_side, tokenizer.padding_side),
            multiple=multiple or 1,
            truncation=cut,
            truncation_side=_side("truncation_side", truncation_side, tokenizer.truncation_side),
            max_length=length,
            noun=noun,
        )

    def cut(self, row: list[int]) -> list[int]:
        """The row, truncated."""
        if not self.truncation or self.max_length is None:
            return row
        return row[max(0, len(row) - self.max_length) :] if self.truncation_side == "left" else row[: self.max_length]

    def length(self, rows: list[list[int]]) -> int | None:
        """The length that all rows are padded to; None where rows are not padded.

        Raises:
            ValueError: a row is longer than `max_length`.
        """
        if self.padding == "do_not_pad":
            return None
        length = max(map(len, rows))
        if self.padding == "max_length" and self.max_length is not None:
            if length > self.max_length:
                one = self.noun.removesuffix("s")
                raise ValueError(
                    f"A {one} has {length} tokens, more than max_length={self.max_length}; use truncation=True."
                )
            length = self.max_length
        return math.ceil(length / self.multiple) * self.multiple

    def filled(self, row: list[int], length: int, value: int) -> list[int]:
        """The row, padded to `length` with `value`."""
        fill = [value] * (length - len(row))
        return [*fill, *row] if self.side == "left" else [*row, *fill]


def check_tensors(return_tensors: Any) -> None:
    """Checks the argument of this name: None, "np" or "jax".

    Raises:
        ValueError: something else, with what to write instead.
    """
    kind = getattr(return_tensors, "value", return_tensors)  # transformers' TensorType is an enumeration
    if kind in _FRAMEWORKS:
        raise ValueError(
            f'return_tensors="{kind}" is not made here, and the model takes NumPy arrays; leave it out, and call '
            f"{_FRAMEWORKS[kind]}(array) on what another library needs."
        )
    if kind not in (None, "np", "numpy", "jax"):
        raise ValueError(f'return_tensors is {shown(return_tensors)}; it must be "np" (the default) or "jax".')


def as_tensors(arrays: dict[str, np.ndarray], return_tensors: Any) -> dict[str, Any]:
    """The arrays as `return_tensors` asks for them: NumPy's, or JAX's."""
    if getattr(return_tensors, "value", return_tensors) != "jax":
        return dict(arrays)
    import jax.numpy as jnp  # with JAX, which a data worker need not have

    return {name: jnp.asarray(array) for name, array in arrays.items()}


def _chosen(name: str, value: Any, values: dict[Any, Any]) -> Any:
    """Return what `value` stands for. Numbers are no values, though 1 == True."""
    value = getattr(value, "value", value)  # transformers' strategies are enumerations
    if isinstance(value, bool | np.bool_ | str | None) and value in values:
        return values[value]
    names = [repr(each) for each in values if each is not None]
    raise ValueError(f"{name} is {shown(value)}; it must be {', '.join(names[:-1])} or {names[-1]}.")


def _side(name: str, value: Any, default: Side) -> Side:
    value = default if value is None else value
    if value not in ("left", "right"):
        raise ValueError(f"{name} is {shown(value)}; it must be 'left' or 'right'.")
    return value
