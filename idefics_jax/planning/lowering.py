"""The programs of a call of `generate`, lowered for a mesh's devices, which may be absent: all of it from shapes."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from idefics_jax.checkpoints.hf_names import path_of
from idefics_jax.config import IdeficsConfig
from idefics_jax.cost.flops import StepFlops, flops_by_part
from idefics_jax.generation.buckets import chunks
from idefics_jax.generation.context import PrefillInputs, plan_reading
from idefics_jax.generation.decode import _decode, make_state
from idefics_jax.generation.prefill import _read_images, expand, image_shape, prefill
from idefics_jax.generation.prompts import Prompts, check_prompts
from idefics_jax.generation.run import rows_of
from idefics_jax.generation.sampling import Sampling, make_sampling
from idefics_jax.generation.stopping import make_stop_table
from idefics_jax.model import IdeficsForVisionText2Text
from idefics_jax.nn.cache import Cache
from idefics_jax.parallel.mesh import on_mesh, row_specs, shapes_on, shards

#: What of the model reads images, and what only a prompt needs of them: their keys and values are cached.
_VISION = ("model/vision/", "model/resampler/")
_IMAGE_KEYS = ("/cross/attention/k/", "/cross/attention/v/", "/cross/attention/k_norm/")


class LoweredProgram(NamedTuple):
    """A program of a call, lowered.

    Attributes:
        name: "images", "prefill" or "decode".
        runs: how often the call runs it; of decoding, the most steps that there are.
        lowered: ready to be compiled.
        flops: of one run, or step, on all devices together, for what is not padding.
        unused_bytes: of weights on each device that it does not use.
    """

    name: str
    runs: int
    lowered: jax.stages.Lowered
    flops: float
    unused_bytes: int


class LoweredCall(NamedTuple):
    """A call of `generate`.

    Attributes:
        programs: in the order that they run; the last decodes.
        answers: how many there are, those that fill up a bucket included.
        tokens: of the longest prompt.
        images: of all prompts.
        slots: for tokens in the cache, of each answer.
        step_bytes: that a step of decoding cannot do without reading, on one device: weights and caches.
    """

    programs: tuple[LoweredProgram, ...]
    answers: int
    tokens: int
    images: int
    slots: int
    step_bytes: int


def lower(
    config: IdeficsConfig,
    mesh: Mesh,
    inputs: dict[str, Any],
    *,
    max_new_tokens: int,
    do_sample: bool,
    copies: int = 1,
    bad_words_ids: Sequence[Sequence[int]] = (),
    stop_strings: Sequence[str] = (),
    tokenizer: Any = None,
) -> LoweredCall:
    """Lower what `generate` would run on this mesh for these prompts, if all were one process's.

    Args:
        config: with the dtype of computation, which is the weights' too.
        inputs: arrays, by the names that `generate` has for them. Their values do not matter, only what is padding.
        copies: answers to each prompt.
        max_new_tokens, do_sample, bad_words_ids, stop_strings, tokenizer: as of `generate`, of whose settings the
            others change no program.

    Raises:
        ValueError: the inputs do not fit each other or the model.
    """
    model = IdeficsForVisionText2Text.abstract(config, param_dtype=config.dtype, mesh=mesh)
    eos = [] if config.eos_token_id is None else np.atleast_1d(config.eos_token_id).tolist()
    prompts = check_prompts(config, 0 if config.pad_token_id is None else config.pad_token_id, eos, **inputs)
    sampling = _sampling(config, bad_words_ids, stop_strings, tokenizer)
    with on_mesh(mesh):
        reading = plan_reading(prompts, None, max_new_tokens)
        call = _Call(model, mesh, prompts, sampling, reading, copies)
        programs = (*call.read_images(), call.prefill(), call.decode(max_new_tokens - 1, do_sample))
        caches = call.cache()
    rows_alone = () if config.tie_word_embeddings else ("model/embedding/",)  # of the table, a step reads a few rows
    weights = call.weights(lambda path: _decodes(path) and not path.startswith(rows_alone))
    return LoweredCall(
        programs=programs,
        answers=len(reading.tokens) * copies,
        tokens=call.longest,
        images=call.seen,
        slots=reading.slots,
        step_bytes=weights + _bytes((caches.self_attention, caches.cross_attention)),
    )


def _sampling(
    config: IdeficsConfig, bad_words_ids: Sequence[Sequence[int]], stop_strings: Sequence[str], tokenizer: Any
) -> Sampling:
    vocabulary = config.vocab_size + config.additional_vocab_size
    return make_sampling(
        vocabulary,
        make_stop_table(stop_strings, tokenizer, vocabulary),
        eos=(),
        pad=0,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_new_tokens=0,
        bad_words_ids=bad_words_ids,
        suppress_tokens=(),
        seed=0,
    )


class _Call(NamedTuple):
    """A call of `generate` on a mesh, made of shapes."""

    model: Any
    mesh: Mesh
    prompts: Prompts
    sampling: Sampling
    reading: PrefillInputs
    copies: int

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return int(self.prompts.valid.sum(axis=1).max())

    @property
    def seen(self) -> int:
        """Images of all prompts."""
        return int(self.prompts.seen_images.sum())

    def flops(self, tokens: int, images: int) -> StepFlops:
        """Forward, of every prompt, by part of the model."""
        rows = len(self.prompts.tokens)
        return flops_by_part(
            self.model.config, rows=rows, sequence_length=tokens, images=images, trainable=lambda path: False
        )

    def weights(self, chosen: Callable[[str], bool]) -> int:
        """Bytes on one device of the weights at the paths that are chosen."""
        leaves = jax.tree_util.tree_leaves_with_path(self.model)
        return sum(_bytes(leaf) for keys, leaf in leaves if chosen(path_of(keys)))

    def read_images(self) -> Iterator[LoweredProgram]:
        prompts, config = self.prompts, self.model.config
        if prompts.images is None:
            return
        sizes = Counter(size for _, size in chunks(self.seen, shards("batch")))
        parts = self.flops(1, self.seen)
        for size, runs in sizes.items():
            pixels = self._placed(np.broadcast_to(np.float32(0), (size, *prompts.images.shape[2:])))
            interpolate = (
                prompts.images_are == "pixel_values" and prompts.images.shape[2] != config.vision_config.image_size
            )
            share = size / sum(size * runs for size, runs in sizes.items())
            yield LoweredProgram(
                "images",
                runs,
                _read_images.lower(self.model, pixels, prompts.images_are, interpolate),
                (parts.vision + parts.resampler) * share,
                self.weights(lambda path: not path.startswith(_VISION)),
            )

    def prefill(self) -> LoweredProgram:
        parts = self.flops(self.longest, self.seen)
        flops = parts.cross_attention + parts.decoder + parts.head / self.longest  # scores of the last token alone
        program = prefill.lower(*self._prefill_arguments(), slots=self.reading.slots)
        return LoweredProgram("prefill", 1, program, flops, self.weights(lambda path: path.startswith(_VISION)))

    def decode(self, steps: int, do_sample: bool) -> LoweredProgram:
        reading, cache = self.reading, self.cache()
        real = len(reading.conversations) * self.copies
        rows = rows_of(reading, self.copies, self.sampling)
        state = self._placed(make_state(*rows, real, reading.room, int(self.sampling.pad)))
        sampling, limit = _given((self.sampling, np.int32(0)))
        images, cache = cache.cross_attention, cache._replace(cross_attention=None)
        program = _decode.lower(self.model, images, cache, state, sampling, limit, do_sample=do_sample)
        parts = self.flops(1, 0)
        return LoweredProgram(
            "decode", steps, program, self.copies * sum(parts), self.weights(lambda path: not _decodes(path))
        )

    def cache(self) -> Cache:
        """As decoding takes it."""
        _, cache = shapes_on(self.mesh, partial(prefill, slots=self.reading.slots), *self._prefill_arguments())
        return cache if self.copies == 1 else shapes_on(self.mesh, partial(expand, copies=self.copies), cache)

    def _prefill_arguments(self) -> tuple[Any, ...]:
        reading, prompts = self.reading, self.prompts
        shape = image_shape(self.model.config, prompts.images, prompts.images_are)
        rows = len(reading.tokens) * reading.new_image_slots
        states = self._placed(jax.ShapeDtypeStruct((rows, *shape), self.model.model.dtype))
        counts = _given((np.int32(0), np.int32(0)))
        arrays = (reading.tokens, reading.embeds, reading.embedded, reading.valid, reading.image_mask)
        return (self.model, None, states, *counts, *self._placed(arrays))

    def _placed(self, tree: Any) -> Any:
        """Arrays as `hosts.place` puts them on the mesh."""

        def shape(x: Any, layout: PartitionSpec) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(self.mesh, layout))

        return jax.tree.map(shape, tree, row_specs(tree))


def _decodes(path: str) -> bool:
    """Return True if decoding uses the weight at this path."""
    return not path.startswith(_VISION) and not any(part in path for part in _IMAGE_KEYS)


def _given(tree: Any) -> Any:
    """Arrays of the host's, as they are given to programs."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _bytes(tree: Any) -> int:
    """Return the bytes of arrays on one device."""
    return sum(prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
