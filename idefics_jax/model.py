"""The whole of IDEFICS: images through the vision tower and resampler, text through the decoder that looks at them."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from idefics_jax.checkpoints.pretrained import Beside, Pretrained
from idefics_jax.config import IdeficsConfig
from idefics_jax.generation.generate import generate
from idefics_jax.nn.cache import Cache, empty_buffers
from idefics_jax.nn.decoder import Decoder
from idefics_jax.nn.layers import Vocabulary
from idefics_jax.nn.loss import next_token_loss
from idefics_jax.nn.masks import position_ids as count_positions
from idefics_jax.nn.resampler import PerceiverResampler
from idefics_jax.nn.stack import Remat
from idefics_jax.nn.vision import VisionTower
from idefics_jax.parallel.mesh import constrain, on_mesh_of, reshape


class IdeficsOutput(NamedTuple):
    """Output of a forward pass.

    Attributes:
        last_hidden_state: `[batch, seq, hidden]` after the last norm.
        logits: float32 `[batch, seq, vocab + additional]`; None from `IdeficsModel`.
        loss: float32 scalar, the mean next-token loss; None without labels.
        hidden_states: the embeddings and each layer's output, the last one's after the norm, `[batch, seq, hidden]`;
            None unless asked for.
        attentions: each layer's self-attention weights, float32 `[batch, heads, seq, seq]`; None unless asked for.
        image_hidden_states: `[batch, images, patches or latents, vision embed]`, what the decoder sees of the images.
    """

    last_hidden_state: Array
    logits: Array | None
    loss: Array | None
    hidden_states: tuple[Array, ...] | None
    attentions: tuple[Array, ...] | None
    image_hidden_states: Array


class IdeficsModel(Pretrained):
    """The model without its output head."""

    def __init__(self, config: IdeficsConfig, key: Array, *, stacked: bool = False):
        vocabulary, vision, resampler, decoder = jax.random.split(key, 4)
        self.config = config
        self._beside = Beside(config)
        self.embedding = Vocabulary(
            vocabulary,
            config.vocab_size,
            config.additional_vocab_size,
            config.hidden_size,
            std=config.initializer_range,
        )
        self.vision = VisionTower(config.vision_config, vision, stacked)
        self.resampler = PerceiverResampler(config, resampler, stacked) if config.use_resampler else None
        self.decoder = Decoder(config, decoder, stacked)

    @property
    def dtype(self) -> Any:
        """The dtype of computation."""
        return jnp.dtype(self.config.dtype)

    def embed(self, input_ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Token vectors, in the compute dtype."""
        return self.embedding.embed(input_ids, self.dtype)

    def encode_images(
        self,
        pixel_values: Float[Array, "b i height width c"] | None = None,
        image_encoder_embeddings: Float[Array, "b i p e"] | None = None,
        perceiver_embeddings: Float[Array, "b i r e"] | None = None,
        interpolate_pos_encoding: bool = False,
        remat: Remat = "none",
    ) -> Float[Array, "b i s e"]:
        """Return the image states that the decoder attends to, from exactly one of pixels, patch states or latents.

        Raises:
            ValueError: not exactly one is given, or latents are given to a model without a resampler.
        """
        given = [x for x in (pixel_values, image_encoder_embeddings, perceiver_embeddings) if x is not None]
        if len(given) != 1:
            raise ValueError(
                "Pass exactly one of pixel_values, image_encoder_embeddings and perceiver_embeddings "
                f"({len(given)} were given)."
            )
        batch, images = given[0].shape[:2]
        flat = reshape(constrain(given[0].astype(self.dtype), "batch"), (batch * images, *given[0].shape[2:]), "batch")
        if perceiver_embeddings is not None and self.resampler is None:
            raise ValueError(
                "perceiver_embeddings need a model with use_resampler=True; pass image_encoder_embeddings."
            )
        if pixel_values is not None:
            flat = self.vision(flat, interpolate_pos_encoding, remat)
        if perceiver_embeddings is None and self.resampler is not None:
            flat = self.resampler(flat, remat)
        return reshape(flat, (batch, images, *flat.shape[1:]), "batch")

    def init_cache(self, batch: int, slots: int, image_slots: int) -> Cache:
        """A cache for `slots` tokens and `image_slots` patches (or latents) of images per row, none of them read."""
        config = self.config
        heads, head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        depths = config.num_hidden_layers // config.cross_layer_interval, config.cross_layer_interval
        stacked = not isinstance(self.decoder.groups, nnx.List)
        return Cache(
            self_attention=empty_buffers(depths, batch, heads, slots, head_dim, self.dtype, stacked),
            cross_attention=empty_buffers(depths[:1], batch, heads, image_slots, head_dim, self.dtype, stacked),
            valid=constrain(jnp.zeros((batch, slots), bool), "batch"),
            length=jnp.int32(0),
        )

    def extend(
        self,
        inputs_embeds: Float[Array, "b t d"],
        valid: Bool[Array, "b t"],
        image_attends: Bool[Array, "b t i"],
        cache: Cache,
        fresh: bool = False,
    ) -> tuple[Float[Array, "b t d"], Cache]:
        """Reads `t` more tokens into the cache: a whole prompt, or the one token just sampled.

        Args:
            inputs_embeds: token vectors.
            valid: False at padding, which takes a slot but is never looked at.
            image_attends: which images each token sees.
            cache: has at least `t` free slots.
            fresh: no token was read before.

        Returns:
            The tokens' last hidden states, and the cache that has them.
        """
        valid, image_attends = constrain(valid, "batch"), constrain(image_attends, "batch")
        read = jnp.sum(cache.valid, axis=-1, keepdims=True)
        positions = jnp.where(valid, count_positions(valid) + read, 1)
        output = self.decoder(inputs_embeds, positions, valid, image_attends, cache, fresh=fresh)
        return output.hidden, output.cache

    @partial(
        jax.jit,
        static_argnames=(
            "padded_last",
            "interpolate_pos_encoding",
            "output_hidden_states",
            "output_attentions",
            "remat",
        ),
    )
    def __call__(
        self,
        input_ids: Int[Array, "b t"] | None = None,
        attention_mask: Shaped[Array, "b t"] | None = None,
        position_ids: Int[Array, "b t"] | None = None,
        inputs_embeds: Float[Array, "b t d"] | None = None,
        pixel_values: Float[Array, "b i height width c"] | None = None,
        image_encoder_embeddings: Float[Array, "b i p e"] | None = None,
        perceiver_embeddings: Float[Array, "b i r e"] | None = None,
        image_attention_mask: Shaped[Array, "b t i"] | None = None,
        segment_ids: Int[Array, "b t"] | None = None,
        padded_last: bool = False,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        remat: Remat = "none",
    ) -> IdeficsOutput:
        """Run a forward pass, compiled once per combination of shapes.

        Args:
            input_ids: token ids; or `inputs_embeds`, their vectors.
            attention_mask: zero at padding; default: no padding.
            position_ids: rotary positions; default: counted from the attention mask.
            pixel_values: channels last; or `image_encoder_embeddings`, the vision tower's patch states; or
                `perceiver_embeddings`, the resampler's latents.
            image_attention_mask: non-zero where a token sees an image.
            segment_ids: tokens attend only to those with their own number: for documents packed into one row.
            padded_last: padding comes after every real token. Causality alone then hides it, and what the model gives
                for padding has no meaning.
            interpolate_pos_encoding: accept images of another size than the model's.
            output_hidden_states, output_attentions: return them.
            remat: what a backward pass computes again instead of keeping (`idefics_jax.nn.stack.Remat`).

        Raises:
            ValueError: missing, superfluous or mis-shaped inputs.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if image_attention_mask is None:
            raise ValueError("Pass image_attention_mask [batch, seq, images]: it says which images each token sees.")
        with on_mesh_of(self):
            x = jnp.asarray(inputs_embeds, self.dtype) if input_ids is None else self.embed(input_ids)
            valid = jnp.ones(x.shape[:2], bool) if attention_mask is None else attention_mask.astype(bool)
            images = self.encode_images(
                pixel_values, image_encoder_embeddings, perceiver_embeddings, interpolate_pos_encoding, remat
            )
            if image_attention_mask.shape[2] != images.shape[1]:
                raise ValueError(
                    f"image_attention_mask is for {image_attention_mask.shape[2]} images, "
                    f"and {images.shape[1]} were given."
                )
            output = self.decoder(
                x,
                count_positions(valid) if position_ids is None else position_ids,
                valid,
                image_attention_mask.astype(bool),
                reshape(images, (images.shape[0], images.shape[1] * images.shape[2], images.shape[3]), "batch"),
                segment_ids=segment_ids,
                padded_last=padded_last,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
                remat=remat,
            )
            return IdeficsOutput(output.hidden, None, None, output.hidden_states, output.attentions, images)


class IdeficsForVisionText2Text(Pretrained):
    """The model with its output head: next-token scores, loss and generation."""

    def __init__(self, config: IdeficsConfig, key: Array, *, stacked: bool = False):
        model, head = jax.random.split(key)
        self.config = config
        self._beside = Beside(config)
        self.model = IdeficsModel(config, model, stacked=stacked)
        self.head = (
            None
            if config.tie_word_embeddings
            else Vocabulary(
                head, config.vocab_size, config.additional_vocab_size, config.hidden_size, std=config.initializer_range
            )
        )

    def logits(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Float32 scores of every token of the vocabulary, the additional ones last."""
        return (self.model.embedding if self.head is None else self.head).logits(hidden)

    @partial(jax.jit, static_argnames=("interpolate_pos_encoding", "output_hidden_states", "output_attentions"))
    def __call__(
        self,
        input_ids: Int[Array, "b t"] | None = None,
        attention_mask: Shaped[Array, "b t"] | None = None,
        position_ids: Int[Array, "b t"] | None = None,
        inputs_embeds: Float[Array, "b t d"] | None = None,
        pixel_values: Float[Array, "b i height width c"] | None = None,
        image_encoder_embeddings: Float[Array, "b i p e"] | None = None,
        perceiver_embeddings: Float[Array, "b i r e"] | None = None,
        image_attention_mask: Shaped[Array, "b t i"] | None = None,
        labels: Int[Array, "b t"] | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> IdeficsOutput:
        """As `IdeficsModel.__call__`, with logits; and with a loss where `labels` are given.

        Labels are the input ids, not shifted; -100 leaves a token out, and so does a zero in `attention_mask`.
        """
        with on_mesh_of(self):
            output = self.model(
                input_ids,
                attention_mask,
                position_ids,
                inputs_embeds,
                pixel_values,
                image_encoder_embeddings,
                perceiver_embeddings,
                image_attention_mask,
                interpolate_pos_encoding=interpolate_pos_encoding,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
            )
            logits = self.logits(output.last_hidden_state)
            loss = None if labels is None else next_token_loss(logits, labels, attention_mask)
            return output._replace(logits=logits, loss=loss)

    @property
    def dtype(self) -> Any:
        """The dtype of computation."""
        return self.model.dtype

    generate = generate
