"""Log-likelihoods of closed answers, with the prompt and its images computed once for all of them.

The prompt is read into a cache. The candidates then stand one after another in one row, as segments that see the
prompt and themselves but not each other, and read the cache without copying it; a candidate of one token needs no more
than the prompt's own scores. Three candidates of 3, 1 and 2 tokens after a prompt of 3; `.` is hidden:

               prompt   a1 a2   c1
        a1     1 1 1    1  .    .      gives the probability of a2
        a2     1 1 1    1  1    .      of a3
        c1     1 1 1    .  .    1      of c2
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from idefics_jax.evaluation.prompting import Prompt
from idefics_jax.generation.buckets import TOKENS, bucket
from idefics_jax.generation.context import plan_reading
from idefics_jax.generation.hosts import Hosts, fetch, place
from idefics_jax.generation.prompts import check_prompts
from idefics_jax.generation.run import prefill_prompts
from idefics_jax.nn.cache import Cache
from idefics_jax.parallel.mesh import constrain, mesh_of, on_mesh_of, per_shard, spec

PACKED = 256  # tokens of candidates that one call reads for each prompt, as long as each has no more
IMAGES_ARE = ("pixel_values", "image_encoder_embeddings", "perceiver_embeddings")
CANDIDATES = 8  # fewest candidates that programs are compiled for


class Packed(NamedTuple):
    """Some candidates' tokens, those but the last of each: `b` prompts, `n` tokens; segments count from 1, 0 pads.

    Attributes:
        tokens: what is read.
        targets: what follows each.
        segments: the candidate's number among those of its row here.
        positions: rotary ones.
        owner: the candidate's number among all of its row; -1 at padding.
    """

    tokens: Int[np.ndarray, "b n"]
    targets: Int[np.ndarray, "b n"]
    segments: Int[np.ndarray, "b n"]
    positions: Int[np.ndarray, "b n"]
    owner: Int[np.ndarray, "b n"]


def log_likelihoods(model: Any, inputs: dict[str, Any], prompts: list[Prompt]) -> list[Float[np.ndarray, "k"]]:
    """The log-probability of each candidate of each prompt, summed over its tokens, float64.

    Args:
        model: an `IdeficsForVisionText2Text`.
        inputs: of the prompts (`prompting.batch_inputs`). Where the model's mesh is over several processes, those of
            this process's own.
        prompts: with their candidates; those of all processes, in their order, which are all answered in each.

    Raises:
        ValueError: the model gave NaN.
    """
    config = model.config
    hosts = Hosts(mesh_of(model))
    with hosts.errors_shared():
        given = check_prompts(
            config,
            config.pad_token_id or 0,
            [],
            inputs["input_ids"],
            inputs["attention_mask"],
            None,
            inputs.get("image_attention_mask"),
            may_be_none=hosts.several,
            **{name: inputs[name] for name in IMAGES_ARE if name in inputs},
        )
    shared = hosts.share(given, ["log_likelihoods"])
    candidates = [prompt.candidates or () for prompt in prompts]
    lengths = shared.valid.sum(axis=1)
    widest = max((len(ids) - 1 for row in candidates for ids in row), default=0)
    with on_mesh_of(model):
        # The candidates are not written into the cache, but as many slots must be there.
        columns = bucket(int(lengths.max()), TOKENS)
        reading = plan_reading(shared, None, max(1, bucket(max(widest, 1), TOKENS) - columns))
        logits, cache = prefill_prompts(model, shared, reading, None, False)
        sums = _first_tokens(logits, candidates, len(reading.tokens))
        attends = place(np.ascontiguousarray(reading.image_mask[:, -1]))
        for packed in pack(candidates, lengths, len(reading.tokens)):
            found = _rest(model, cache, attends, *map(place, packed[:4]))
            found = np.asarray(fetch(found), np.float64)
            for row, values in enumerate(sums):
                real = packed.owner[row] >= 0
                np.add.at(values, packed.owner[row][real], found[row][real])
    for row, values in enumerate(sums):
        if np.isnan(values).any():
            raise ValueError(
                f"The model's scores for prompt {row} became NaN; look for NaN in its images and in the weights, "
                "and compute in bfloat16 or float32, not float16."
            )
    return sums


def _first_tokens(logits: Array, candidates: list[Any], rows: int) -> list[Float[np.ndarray, "k"]]:
    """The log-probability of each candidate's first token, from the prompt's own scores."""
    most = bucket(max(map(len, candidates)), CANDIDATES)
    first = np.zeros((rows, most), np.int32)
    for row, ids in enumerate(candidates):
        first[row, : len(ids)] = [tokens[0] for tokens in ids]
    found = np.asarray(fetch(_first(logits, place(first))), np.float64)
    return [found[row, : len(ids)].copy() for row, ids in enumerate(candidates)]


@jax.jit
def _first(logits: Float[Array, "b v"], tokens: Int[Array, "b k"]) -> Float[Array, "b k"]:
    def pick(logits: Array, tokens: Array) -> Array:
        return jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), tokens, axis=-1)

    return _per_row(pick)(constrain(logits, "batch"), tokens)


@jax.jit
def _rest(
    model: Any,
    cache: Cache,
    attends: Bool[Array, "b i"],
    tokens: Int[Array, "b n"],
    targets: Int[Array, "b n"],
    segments: Int[Array, "b n"],
    positions: Int[Array, "b n"],
) -> Float[Array, "b n"]:
    """The log-probability of each target. Candidates see the images that the prompt's last token sees."""
    sees = jnp.broadcast_to(attends[:, None], (*tokens.shape, attends.shape[1]))
    output = model.model.decoder(model.model.embed(tokens), positions, segments > 0, sees, cache, segment_ids=segments)

    def pick(logits: Array, targets: Array) -> Array:
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    return _per_row(pick)(constrain(model.logits(output.hidden), "batch"), targets)


def _per_row(pick: Any) -> Any:
    """Each device picks for its own rows."""
    rows = spec("batch")
    return per_shard(pick, (rows, rows), rows)


def pack(candidates: list[Any], lengths: Int[np.ndarray, "b"], rows: int) -> list[Packed]:
    """Puts the candidates' tokens into as few rows as they fit in, in order, at most `PACKED` tokens a row."""
    chunks = [_chunks(ids) for ids in candidates]
    result = []
    for number in range(max(map(len, chunks), default=0)):
        here = [row[number] if number < len(row) else [] for row in chunks]
        width = bucket(max(sum(len(ids) - 1 for _, ids in chunk) for chunk in here), TOKENS)
        arrays = [np.zeros((rows, width), np.int32) for _ in range(4)]
        owner = np.full((rows, width), -1, np.int32)
        for row, chunk in enumerate(here):
            start = 0
            for segment, (candidate, ids) in enumerate(chunk, 1):
                part = slice(start, start + len(ids) - 1)
                values = (ids[:-1], ids[1:], segment, lengths[row] + np.arange(len(ids) - 1))
                for array, value in zip(arrays, values, strict=True):
                    array[row, part] = value
                owner[row, part] = candidate
                start = part.stop
        tokens, targets, segments, positions = arrays
        result.append(Packed(tokens, targets, segments, positions, owner))
    return result


def _chunks(candidates: Any) -> list[list[tuple[int, Any]]]:
    """Numbered candidates of more than one token, in lists of at most `PACKED` tokens, or of one candidate."""
    chunks: list[list[tuple[int, Any]]] = []
    room = 0
    for number, ids in enumerate(candidates):
        if len(ids) == 1:
            continue
        if not chunks or len(ids) - 1 > room:
            chunks.append([])
            room = PACKED
        chunks[-1].append((number, ids))
        room -= len(ids) - 1
    return chunks
