"""Prompts of texts and images to the model's inputs, and its tokens back to text."""

import os
from collections.abc import Callable, Sequence
from inspect import signature
from itertools import chain
from typing import Any, Self, no_type_check

import numpy as np
from PIL import Image

from idefics_jax.processing.chat import chat_prompt
from idefics_jax.processing.image_processor import FILES as IMAGE_PROCESSOR_FILES
from idefics_jax.processing.image_processor import IdeficsImageProcessor
from idefics_jax.processing.padding import INSTEAD, Padding, as_tensors, check_tensors
from idefics_jax.processing.prompts import END_OF_UTTERANCE, FAKE_TOKEN, IMAGE_TOKEN, Prompt, join, parse_prompts
from idefics_jax.processing.tokenizer import FILES as TOKENIZER_FILES
from idefics_jax.processing.tokenizer import IdeficsTokenizer
from idefics_jax.utils.checks import LOADING, number, refuse, whole
from idefics_jax.utils.commit import committed
from idefics_jax.utils.hub import checkpoint_directory
from idefics_jax.utils.paths import PathLike

MOST_PIXELS = 4096  # height and width that images can be resized to


class IdeficsProcessor:
    """An image processor and a tokenizer. Picklable; only numpy, Pillow and `tokenizers`, for data workers too.

        processor = IdeficsProcessor.from_pretrained("HuggingFaceM4/idefics-9b-instruct")
        inputs = processor(["User:", "photo.jpg", "Describe this image.<end_of_utterance>\\nAssistant:"])
        tokens = model.generate(**inputs, max_new_tokens=50)
        print(processor.batch_decode(tokens, skip_special_tokens=True)[0])

    Raises:
        ValueError: the tokenizer has no image tokens.
    """

    def __init__(self, image_processor: IdeficsImageProcessor, tokenizer: IdeficsTokenizer):
        for token in (FAKE_TOKEN, IMAGE_TOKEN):
            if token not in tokenizer:
                raise ValueError(f"The tokenizer has no {token} token, which IDEFICS needs; use the checkpoint's own.")
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.fake_token_id, self.image_token_id = tokenizer.convert_tokens_to_ids([FAKE_TOKEN, IMAGE_TOKEN])
        self.end_of_utterance = END_OF_UTTERANCE if END_OF_UTTERANCE in tokenizer else ""

    def __repr__(self) -> str:
        size = self.image_processor.image_size
        kind = "instruct" if self.end_of_utterance else "base"
        return f"{type(self).__name__}({kind}, images of {size} x {size} pixels, {self.tokenizer!r})"

    @property
    def answer_ends(self) -> list[int]:
        """The tokens that end an answer: the end of a sequence, and that of an utterance where there is one."""
        ends = [self.end_of_utterance] if self.end_of_utterance else []
        return [self.tokenizer.eos_token_id, *self.tokenizer.convert_tokens_to_ids(ends)]

    @no_type_check  # wrong types have their own sentences
    def __call__(
        self,
        text: Any = None,
        images: Any = None,
        *,
        add_eos_token: bool = False,
        add_end_of_utterance_token: bool | None = None,
        padding: bool | str = "longest",
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        truncation: bool | str | None = False,
        truncation_side: str | None = None,
        max_length: int | None = None,
        image_size: int | None = None,
        image_transform: Callable[[Image.Image], Any] | None = None,
        return_tensors: str | None = None,
        **unknown: Any,
    ) -> dict[str, Any]:
        """The inputs of `model.generate(**inputs)` for one prompt or a batch of them.

        A prompt (`text`) is a string or a list of strings and images; a batch is a list of such lists. An image is a
        Pillow image, an array, a `pathlib.Path`, or a string that is nothing but an http(s) or `data:` URL or the name
        of an image file (`images.is_image_source`); `prompts.Text("...")` is a string that is never read as one. Each
        image becomes `<fake_token_around_image><image><fake_token_around_image>`, neighbours share the token between
        them, and strings lose the spaces at their ends.

        Or `text` is strings only, and `images` has their images: one for each `<image>` written in the text. For a text
        without marks, as in the reference, a single image goes before the text and a list of them after it. Several
        texts go with as many entries in `images`, each an image or a list of images.

        Special tokens written in a string count as such, as in the reference; but an `<image>` without its image, or
        the reverse, is an error.

        Args:
            add_eos_token: end each prompt with `</s>`, for training.
            add_end_of_utterance_token: put `<end_of_utterance>` between two strings in a row (never after the last);
                default: if the tokenizer has it.
            padding: "longest" (or True) or "max_length"; "do_not_pad" (or False) wants prompts of equal length. Padding
                is `<unk>`, id 0, with attention mask 0.
            padding_side: default: the checkpoint's, "left".
            pad_to_multiple_of: pad to the next multiple, so that few shapes need compiling.
            truncation: cut prompts of more than `max_length` tokens at `truncation_side` (default: the checkpoint's,
                "right"). An image whose `<image>` is cut off is dropped: its pixels stay zero and no token sees it.
                (The reference drops the last images, also when it cuts off the first.)
            image_size, image_transform: see `IdeficsImageProcessor.preprocess`.
            return_tensors: "np", the default, or "jax" for JAX's arrays.

        Returns:
            input_ids, attention_mask: `[batch, tokens]`, int32.
            pixel_values: `[batch, images, height, width, 3]`, float32; as many images as the prompt with the most has
                before truncation, at least 1; zeros for those that a prompt lacks.
            image_attention_mask: `[batch, tokens, images]`, int32: 1 where a token sees an image.

        Raises:
            FileNotFoundError, OSError: an image cannot be read.
            ValueError: an empty batch or prompt, a wrong number of images, one that is damaged or of a wrong shape,
                lengths that do not fit, an argument that is unknown or out of range.
        """
        refuse("The processor", unknown, signature(IdeficsProcessor.__call__).parameters, INSTEAD)
        fill = Padding.of(
            self.tokenizer, padding, padding_side, pad_to_multiple_of, truncation, truncation_side, max_length
        )
        check_tensors(return_tensors)
        if image_size is not None:
            image_size = int(number("image_size", image_size, whole(1, MOST_PIXELS)))
        if add_end_of_utterance_token and not self.end_of_utterance:
            raise ValueError(f"The tokenizer has no {END_OF_UTTERANCE} token; it is the instruct checkpoints'.")
        between_texts = "" if add_end_of_utterance_token is False else self.end_of_utterance
        eos = self.tokenizer.eos_token if add_eos_token else ""
        joined = [join(prompt, self.tokenizer.bos_token, between_texts) for prompt in parse_prompts(text, images)]
        rows = [self.tokenizer.encode(text + eos) for text, _ in joined]
        row_images = [images for _, images in joined]
        image_count = max(1, *map(len, row_images))
        if fill.truncation:
            rows, left = [fill.cut(row) for row in rows], fill.truncation_side == "left"
            kept = [row.count(self.image_token_id) for row in rows]
            row_images = [
                images[len(images) - count :] if left else images[:count]
                for images, count in zip(row_images, kept, strict=True)
            ]
        length = fill.length(rows)
        if length is None:
            length = len(rows[0])
            if (most := max(map(len, rows))) > (least := min(map(len, rows))):
                raise ValueError(f"The prompts have {least} to {most} tokens; pad them, padding='longest'.")
        input_ids = np.array([fill.filled(row, length, self.tokenizer.pad_token_id) for row in rows], np.int32)
        attention_mask = np.array([fill.filled([1] * len(row), length, 0) for row in rows], np.int32)
        pixels = self.image_processor.preprocess(list(chain(*row_images)), image_size, image_transform)
        pixel_values = np.zeros((len(rows), image_count, *pixels.shape[1:]), np.float32)
        pixel_values[np.arange(image_count) < np.array([[len(images)] for images in row_images])] = pixels
        image_attention_mask = image_mask(input_ids, self.image_token_id, self.tokenizer.eos_token_id, image_count)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "pixel_values": pixel_values,
            "image_attention_mask": image_attention_mask,
        }
        return as_tensors(inputs, return_tensors)

    def apply_chat_template(
        self,
        messages: Sequence[Any],
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        **arguments: Any,
    ) -> Prompt | list[Prompt] | dict[str, Any]:
        """Chat-style messages, or a batch (a list) of such lists, as a prompt: `chat.chat_prompt` shows both forms.

        Args:
            add_generation_prompt: end with `Assistant:`, so that the model answers.
            tokenize: give the model's inputs, as `processor(prompt, **arguments)` does, instead of the prompt.

        Raises:
            ValueError: no message, or a message or part that is not of the form described there.
        """
        batched = bool(messages) and isinstance(messages[0], list | tuple)
        conversations: Any = messages if batched else [messages]
        prompts = [chat_prompt(messages, self.end_of_utterance, add_generation_prompt) for messages in conversations]
        if tokenize:
            return self(prompts, **arguments)
        return prompts if batched else prompts[0]

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The text of one sequence of token ids, a list or an array of any library; of `[batch, tokens]`, a list."""
        return self.tokenizer.decode(ids, skip_special_tokens)

    def batch_decode(self, ids: Any, skip_special_tokens: bool = False) -> list[str]:
        """The texts of several sequences of token ids, such as `[batch, tokens]`."""
        return self.tokenizer.batch_decode(ids, skip_special_tokens)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: PathLike,
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **unknown: Any,
    ) -> Self:
        """From a checkpoint's directory or hub id, of which only the processor's files are read.

        `revision`, `cache_dir`, `token` and `local_files_only` are the hub's (`utils.hub`).

        Raises:
            FileNotFoundError: no such checkpoint, or a file is missing.
            ValueError: a file that is damaged, or names something that is not implemented.
        """
        hub = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        refuse("from_pretrained", unknown, hub, LOADING)
        directory = checkpoint_directory(path_or_id, [*IMAGE_PROCESSOR_FILES, *TOKENIZER_FILES], **hub)
        return cls(IdeficsImageProcessor.from_pretrained(directory), IdeficsTokenizer.from_pretrained(directory))

    def save_pretrained(self, directory: PathLike) -> None:
        """Write the files that `from_pretrained` and transformers' `IdeficsProcessor` read, all of them or none.

        Raises:
            OSError: the directory cannot be written; what was in it is unchanged.
        """
        with committed(directory) as folder:
            self.image_processor.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)


def image_mask(ids: np.ndarray, image_token_id: int, eos_token_id: int, image_count: int) -> np.ndarray:
    """Which image each token sees: `[batch, tokens, images]` int32, from the padded ids `[batch, tokens]`.

    It is the last one so far. A token after an end-of-sequence token sees none until the next image:

                    <s> User: F <image> F What? </s> <s> F <image> F Who?
        image 0      .    .   .    1    1   1    1    .  .    .    .   .
        image 1      .    .   .    .    .   .    .    .  .    1    1   1
    """
    positions = np.arange(ids.shape[1])
    is_image, is_eos = ids == image_token_id, ids == eos_token_id
    last_image = np.maximum.accumulate(np.where(is_image, positions, -1), axis=1)
    last_eos = np.maximum.accumulate(np.where(is_eos, positions, -1), axis=1)
    eos_before = np.pad(last_eos[:, :-1], ((0, 0), (1, 0)), constant_values=-1)  # the token itself not counted
    seen = np.where(eos_before > last_image, -1, np.cumsum(is_image, axis=1) - 1)
    return (seen[..., None] == np.arange(image_count)).astype(np.int32)
