"""One training step: a state and a batch to the next state, on any mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from idefics_jax import IdeficsImageProcessor
from idefics_jax.nn.loss import IGNORED
from idefics_jax.nn.stack import with_dropout_keys

from .config import TrainConfig
from .loss import Sums, chunked_sums, targets
from .trainable import Template


class Batch(NamedTuple):
    """Rows of tokens and their images; `a` parts that are worked through one after the other, of `b` rows each.

    Attributes:
        input_ids: token ids.
        labels: the ids that are to be predicted, in place (not shifted); -100: not to be.
        segment_ids: which of the row's documents a token belongs to, from 1; 0 is padding.
        position_ids: rotary positions.
        image_attention_mask: 1 where a token sees an image.
        pixel_values: bytes, as images have them; zeros where a row has fewer images.
    """

    input_ids: Int[Array, "a b t"]
    labels: Int[Array, "a b t"]
    segment_ids: Int[Array, "a b t"]
    position_ids: Int[Array, "a b t"]
    image_attention_mask: Int[Array, "a b t i"]
    pixel_values: UInt8[Array, "a b i height width 3"]


class TrainState(NamedTuple):
    """What training changes.

    Attributes:
        step: steps done, skipped ones included; int32.
        params: the weights that train, nested by path; float32.
        opt_state: optax's.
        ema: a moving average of `params`; None where none is kept.
        skipped: steps whose gradients were not finite, and so changed nothing; int32.
        skipped_in_row: the last of them, without one in between that was not skipped; int32.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    ema: Any
    skipped: Int[Array, ""]
    skipped_in_row: Int[Array, ""]


def init_state(params: Any, optimizer: optax.GradientTransformation, ema: bool) -> TrainState:
    """The state before the first step; run it under `jax.jit`."""
    zero = jnp.int32(0)
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(zero, params, optimizer.init(params), average, zero, zero)


class Objective(NamedTuple):
    """What is minimised, a mean over all of a batch's tokens.

    Attributes:
        template: the model that `params` and `frozen` make together.
        config: of the run.
        image_processor: says how bytes become pixels.
        image_token_id: not counted in the z-loss.
    """

    template: Template
    config: TrainConfig
    image_processor: IdeficsImageProcessor
    image_token_id: int

    def counted(self, batch: Batch) -> tuple[Bool[Array, "... t"], Bool[Array, "... t"]]:
        """The positions whose prediction counts, and those whose z-loss does (`m4/training/trainer.py`)."""
        return targets(batch.labels) != IGNORED, (batch.segment_ids > 0) & (batch.input_ids != self.image_token_id)

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: Array | None) -> Sums:
        """Sums over one part, `[b, ...]`, of a batch: of cross-entropies, and of z-losses; float32.

        Args:
            key: for dropout; None: none.
        """
        config, model = self.config, self.template.join(params, frozen)
        if key is not None:
            model = with_dropout_keys(model, key)
        output = model.model(
            input_ids=batch.input_ids,
            attention_mask=batch.segment_ids > 0,
            position_ids=batch.position_ids,
            pixel_values=self.pixels(batch.pixel_values),
            image_attention_mask=batch.image_attention_mask,
            segment_ids=batch.segment_ids if config.data.segment_masks else None,
            padded_last=True,
            remat=config.remat,
        )
        vocabulary = model.model.embedding if model.head is None else model.head
        _, z_counted = self.counted(batch)
        return chunked_sums(output.last_hidden_state, vocabulary, targets(batch.labels), z_counted, config.loss_chunk)

    def pixels(self, images: UInt8[Array, "..."]) -> Float[Array, "..."]:
        """Bytes rescaled and normalised as the image processor does, float32."""
        processor = self.image_processor
        pixels = images.astype(jnp.float32)
        if processor.do_rescale:
            pixels = pixels * processor.rescale_factor
        if processor.do_normalize:
            pixels = (pixels - jnp.array(processor.image_mean)) / jnp.array(processor.image_std)
        return pixels


class Losses(NamedTuple):
    """Means over tokens, float32: the cross-entropy, and the squared log of the softmax's denominator."""

    loss: Float[Array, ""]
    z_loss: Float[Array, ""]


def means(objective: Objective, batch: Batch) -> Callable[[Sums], Losses]:
    """Divides sums over parts of the batch by the whole batch's numbers of tokens: the parts do not matter."""
    learnt, z_counted = (jnp.maximum(jnp.sum(counted), 1) for counted in objective.counted(batch))
    return lambda sums: Losses(sums.cross_entropy / learnt, sums.z / z_counted)


def as_multiplied(params: Any, dtype: str) -> Any:
    """The weights, matrices in the dtype that products read them in, and give their gradients in.

    By the master weights' dtype, float32, gradients would take twice the memory for what devices add up in `dtype`.
    """

    def cast(keys: tuple[Any, ...], weight: Array) -> Array:
        return weight.astype(dtype) if keys[-1].key == "kernel" else weight

    return jax.tree_util.tree_map_with_path(cast, params)


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Array]]]:
    """The step `(state, frozen, batch) -> state, metrics`; metrics are float32 scalars still on the device."""
    config = objective.config

    def train_step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        mean, step_key = means(objective, batch), jax.random.fold_in(jax.random.key(config.seed), state.step)

        def loss(params: Any, part: Batch, number: Array) -> tuple[Array, Losses]:
            losses = mean(objective(params, frozen, part, jax.random.fold_in(step_key, number)))
            return losses.loss + config.z_loss * losses.z_loss, losses

        multiplied = as_multiplied(state.params, config.dtype)

        def accumulate(sums: Any, part: Any) -> tuple[Any, None]:
            (_, losses), gradients = jax.value_and_grad(loss, has_aux=True)(multiplied, *part)
            return jax.tree.map(jnp.add, sums, (losses, gradients)), None

        zeros = (Losses(jnp.float32(0), jnp.float32(0)), jax.tree.map(jnp.zeros_like, state.params))
        parts = (batch, jnp.arange(batch.input_ids.shape[0]))
        if batch.input_ids.shape[0] == 1:
            # Not a loop of one turn: XLA takes what is in it for invariant, and computes it before the loop as well.
            (losses, gradients), _ = accumulate(zeros, jax.tree.map(lambda part: part[0], parts))
        else:
            (losses, gradients), _ = jax.lax.scan(accumulate, zeros, parts)

        with jax.named_scope("optimizer"):
            norm = optax.tree.norm(gradients)
            # Not by the new weights: the whole model's old and new ones would be in memory until all are known. Weights
            # that overflow all the same are refused before they are saved (`all_finite`).
            finite = jnp.isfinite(norm) & jnp.isfinite(losses.loss)
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            ema, decay = state.ema, config.ema
            if decay is not None:
                ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
            changed = (params, opt_state, ema)
            params, opt_state, ema = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), changed, (state.params, state.opt_state, state.ema)
            )
        skip = jnp.where(finite, 0, 1)
        state = TrainState(
            state.step + 1, params, opt_state, ema, state.skipped + skip, (state.skipped_in_row + skip) * skip
        )
        metrics = {
            "loss": losses.loss,
            "z_loss": losses.z_loss,
            "gradient_norm": norm,
            "skipped": state.skipped,
            "skipped_in_row": state.skipped_in_row,
        }
        return state, metrics

    return train_step


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Return True if no number of any array is NaN or infinite."""
    return sum(jnp.sum(~jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)) == jnp.int32(0)


def make_eval_step(objective: Objective) -> Callable[[Any, Any, Batch], tuple[Array, Array]]:
    """`(params, frozen, batch) -> the sum of cross-entropies, and of how many tokens`."""

    def eval_step(params: Any, frozen: Any, batch: Batch) -> tuple[Array, Array]:
        def add(total: Array, part: Batch) -> tuple[Array, None]:
            return total + objective(params, frozen, part, None).cross_entropy, None

        total, _ = jax.lax.scan(add, jnp.float32(0), batch)
        return total, jnp.sum(objective.counted(batch)[0])

    return eval_step
