"""The language model: LLaMA layers, with a gated cross-attention layer to the images in front of every few of them.

The decoder is a stack of groups, each one gated cross-attention layer (Alayrac et al. 2022, section 3.1.2) followed by
`cross_layer_interval` LLaMA layers.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from idefics_jax.config import IdeficsConfig
from idefics_jax.kernels.cross_attention import attend_to_images, fits_images
from idefics_jax.kernels.splash import Segments, fits, flash_attention, segments
from idefics_jax.nn.attention import Past, attention, attention_weights
from idefics_jax.nn.cache import Cache, KeyValue, write
from idefics_jax.nn.layers import Dropout, GatedMLP, Linear, RMSNorm, constant, normal, parameter
from idefics_jax.nn.masks import causal_mask, image_mask
from idefics_jax.nn.rope import Rope, rotary_angles, rotate
from idefics_jax.nn.stack import Remat, init_layers, rematerialize, scan_layers
from idefics_jax.parallel.mesh import constrain, reshape


def _heads(config: IdeficsConfig) -> dict[str, int]:
    return {"heads": config.num_attention_heads, "head_dim": config.hidden_size // config.num_attention_heads}


class SelfAttention(nnx.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: IdeficsConfig, key: Array):
        q, k, v, o = jax.random.split(key, 4)
        embed, heads, std = {"embed": config.hidden_size}, _heads(config), config.initializer_range
        self.q = Linear(q, embed, heads, std=std)
        self.k = Linear(k, embed, heads, std=std)
        self.v = Linear(v, embed, heads, std=std)
        self.o = Linear(o, heads, embed, std=std)
        self.dropout = Dropout(config.dropout) if config.dropout else None

    def __call__(
        self, x: Float[Array, "b t d"], rope: Rope, mask: Bool[Array, "b t t"] | Segments | None, past: Past | None
    ) -> tuple[Float[Array, "b t d"], KeyValue, Float[Array, "b n t s"] | None]:
        """Attends to `x` itself, and to what was read before.

        Args:
            mask: causal; None: nothing else is hidden.

        Returns the result, the keys and values of `x` to be cached, and the attention weights (what is not used costs
        nothing under jit), which exist only with a mask that is an array.
        """
        query = self.q(x)
        scale = query.shape[-1] ** -0.5 if isinstance(mask, Segments) else 1.0  # the kernel's query is scaled
        query = checkpoint_name(rotate(query, rope, scale), "query")
        key = checkpoint_name(rotate(self.k(x), rope).swapaxes(1, 2), "key")
        value = checkpoint_name(self.v(x).swapaxes(1, 2), "value")
        if isinstance(mask, Segments):
            context, weights = flash_attention(query, key, value, mask), None
        else:
            context = attention(query, key, value, mask, past, self.dropout, causal=True)
            weights = None if mask is None else attention_weights(query, key, mask, past)
        return checkpoint_name(self.o(context), "out"), KeyValue(key.swapaxes(2, 3), value), weights


class DecoderLayer(nnx.Module):
    """LLaMA's block."""

    def __init__(self, config: IdeficsConfig, key: Array):
        attention_key, mlp_key = jax.random.split(key)
        embed, std = config.hidden_size, config.initializer_range
        self.attention_norm = RMSNorm(embed, config.rms_norm_eps)
        self.attention = SelfAttention(config, attention_key)
        self.mlp_norm = RMSNorm(embed, config.rms_norm_eps)
        self.mlp = GatedMLP(mlp_key, embed, config.intermediate_size, config.hidden_act, std=std)
        self.attention_dropout, self.mlp_dropout = Dropout(config.dropout), Dropout(config.dropout)

    def __call__(
        self, x: Float[Array, "b t d"], rope: Rope, mask: Bool[Array, "b t t"] | Segments | None, past: Past | None
    ):
        """As `SelfAttention.__call__`."""
        with jax.named_scope("self_attention"):
            y, new, weights = self.attention(self.attention_norm(x), rope, mask, past)
            x = x + self.attention_dropout(y)
        with jax.named_scope("mlp"):
            return x + self.mlp_dropout(self.mlp(self.mlp_norm(x))), new, weights


class CrossAttention(nnx.Module):
    """Text queries on image keys; no rotary positions, RMS norms over each head where the config asks for them."""

    def __init__(self, config: IdeficsConfig, key: Array):
        q, k, v, o = jax.random.split(key, 4)
        embed, image, heads = config.hidden_size, config.vision_config.embed_dim, _heads(config)
        self.q = Linear(q, {"embed": embed}, heads, std=math.sqrt(0.4 / embed))
        self.k = Linear(k, {"embed": image}, heads, std=math.sqrt(0.4 / image))
        self.v = Linear(v, {"embed": image}, heads, std=math.sqrt(0.4 / image))
        self.o = Linear(o, heads, {"embed": embed}, std=math.sqrt(0.4 / embed))
        self.q_norm = RMSNorm(heads["head_dim"], config.rms_norm_eps) if config.qk_layer_norms else None
        self.k_norm = RMSNorm(heads["head_dim"], config.rms_norm_eps) if config.qk_layer_norms else None
        self.dropout = Dropout(config.dropout) if config.dropout else None

    @jax.named_scope("cross_attention")
    def keys_values(self, image_states: Float[Array, "b s e"]) -> KeyValue:
        """Return the images' keys and values: the same for every token, so computed once per prompt."""
        key, value = self.k(image_states), self.v(image_states)
        key = key if self.k_norm is None else self.k_norm(key)
        return KeyValue(key.transpose(0, 2, 3, 1), value.swapaxes(1, 2))

    def __call__(self, x: Float[Array, "b t d"], images: KeyValue, mask: Bool[Array, "b t s"]) -> Float[Array, "b t d"]:
        query = checkpoint_name(self.q(x), "query")
        query = query if self.q_norm is None else self.q_norm(query)
        # Beams share their prompt's images: they join the query axis, so that image keys are never repeated.
        prompts, tokens = images.key.shape[0], x.shape[0] // images.key.shape[0] * x.shape[1]
        folded = reshape(query, (prompts, tokens, *query.shape[2:]), "batch", None, "heads", None)
        mask = reshape(mask, (prompts, tokens, mask.shape[2]), "batch")
        by_kernel = self.dropout is None and fits_images(tokens, mask.shape[2])
        attend = attend_to_images if by_kernel else partial(attention, dropout=self.dropout)
        y = attend(folded, images.key.swapaxes(2, 3), images.value, mask)
        return self.o(reshape(y, query.shape, "batch", None, "heads", None))


class GatedCrossAttentionLayer(nnx.Module):
    """Cross-attention and an MLP, each let in through a learned tanh gate that starts at the config's alphas."""

    def __init__(self, config: IdeficsConfig, key: Array):
        attention_key, mlp_key, alpha_key = jax.random.split(key, 3)
        embed = config.hidden_size
        self.attention_norm = RMSNorm(embed, config.rms_norm_eps)
        self.attention = CrossAttention(config, attention_key)
        self.mlp_norm = RMSNorm(embed, config.rms_norm_eps)
        self.mlp = GatedMLP(
            mlp_key, embed, config.intermediate_size, config.hidden_act, std=math.sqrt(0.4 / config.intermediate_size)
        )
        shape = {"float": (), "vector": (embed,)}[config.alpha_type]
        alphas = {"zeros": constant(0.0), "ones": constant(1.0)}.get(
            config.alpha_initializer, normal(alpha_key, config.alphas_initializer_range)
        )
        self.alpha_attention = parameter(shape, (None,) * len(shape), alphas)
        self.alpha_mlp = parameter(shape, (None,) * len(shape), alphas)
        self.attention_dropout, self.mlp_dropout = Dropout(config.dropout), Dropout(config.dropout)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        images: KeyValue,
        mask: Bool[Array, "b t s"],
        sees_image: Bool[Array, "b t"],
    ) -> Float[Array, "b t d"]:
        """Tokens that see no image get nothing from the attention; the gated MLP runs for them all the same."""
        with jax.named_scope("cross_attention"):
            y = self.attention_dropout(self.attention(self.attention_norm(x), images, mask))
            x = x + self._gate(self.alpha_attention, x) * jnp.where(sees_image[..., None], y, 0)
        with jax.named_scope("cross_mlp"):
            return x + self._gate(self.alpha_mlp, x) * self.mlp_dropout(self.mlp(self.mlp_norm(x)))

    @staticmethod
    def _gate(alpha: nnx.Param, x: Array) -> Array:
        return jnp.tanh(alpha[...].astype(jnp.float32)).astype(x.dtype)


class Group(nnx.Module):
    """A gated cross-attention layer and the LLaMA layers that follow it."""

    def __init__(self, config: IdeficsConfig, key: Array, stacked: bool):
        cross_key, layers_key = jax.random.split(key)
        self.cross = GatedCrossAttentionLayer(config, cross_key)
        self.layers = init_layers(
            lambda key: DecoderLayer(config, key), layers_key, config.cross_layer_interval, stacked
        )


class DecoderOutput(NamedTuple):
    """`hidden` `[b, t, d]` after the last norm; the written cache; and, where asked for, the embeddings, each layer's
    output (the last one's after the norm) and each layer's attention weights."""

    hidden: Float[Array, "b t d"]
    cache: Any
    hidden_states: Any
    attentions: Any


class Decoder(nnx.Module):
    """Groups of layers and a last norm."""

    def __init__(self, config: IdeficsConfig, key: Array, stacked: bool = False):
        groups = config.num_hidden_layers // config.cross_layer_interval
        self.config = config
        self.groups = init_layers(lambda key: Group(config, key, stacked), key, groups, stacked)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def image_keys_values(self, image_states: Float[Array, "b s e"]) -> Any:
        """Every group's keys and values of the images, stacked or unrolled as the groups are."""
        _, (images,) = scan_layers(
            lambda _, group: (None, (group.cross.attention.keys_values(image_states),)), None, self.groups
        )
        return images

    def __call__(
        self,
        x: Float[Array, "b t d"],
        position_ids: Int[Array, "b t"],
        valid: Bool[Array, "b t"],
        attends: Bool[Array, "b t i"],
        images: Float[Array, "bi images_patches e"] | Cache,
        *,
        segment_ids: Int[Array, "b t"] | None = None,
        padded_last: bool = False,
        fresh: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        remat: Remat = "none",
    ) -> DecoderOutput:
        """Reads `t` tokens after those in the cache, or alone.

        Args:
            x: token vectors.
            position_ids: their rotary positions.
            valid: which of them are real, not padding.
            attends: which images each token sees.
            images: the images' states, or a cache that has their keys and values.
            segment_ids: tokens attend only to those with their own number.
            padded_last: padding comes after every real token, from which causality alone then hides it.
            fresh: no token was read before; the cache is only written.
            remat: what the backward pass computes again of each layer.
        """
        config = self.config
        cache = images if isinstance(images, Cache) else None
        rope = rotary_angles(position_ids, config.hidden_size // config.num_attention_heads, config.rope_theta)
        flash = cache is None and not output_attentions and not config.dropout and fits(x.shape[1])
        causal_alone = padded_last and segment_ids is None and not output_attentions
        mask = segments(valid, segment_ids) if flash else None if causal_alone else causal_mask(valid, segment_ids)
        sees_image = jnp.any(attends, axis=-1)

        def layer_body(x, layer, buffers):
            past = None if cache is None or fresh else Past(buffers.key, buffers.value, cache.valid[:, None])
            x, new, weights = layer(x, rope, mask, past)
            return x, (
                None if cache is None else new,
                x if output_hidden_states else None,
                weights if output_attentions else None,
            )

        def group_body(x, group, images, buffers):
            x = rematerialize(cross, remat)(x, group.cross, images)
            # Unrolled takes twice as long to compile: only where much is kept, which a scan in a scan copies.
            unroll = remat not in ("full", ("attention",))
            return scan_layers(layer_body, x, group.layers, buffers, remat=remat, unroll=unroll)

        def cross(x, layer, images):
            images = layer.attention.keys_values(image_states) if images is None else images
            patches = images.value.shape[2] // attends.shape[2]
            return layer(x, images, image_mask(attends, patches), sees_image)

        image_states = None if cache is not None else images
        extras = (None, None) if cache is None else (cache.cross_attention, cache.self_attention)
        embeds = x
        x, (new, states, attentions) = scan_layers(group_body, constrain(x, "batch"), self.groups, *extras)
        hidden = self.norm(x)
        if cache is not None:
            cache = self._written(cache, new, valid, hidden)
        states = None if states is None else (embeds, *self._per_layer(states)[:-1], hidden)
        return DecoderOutput(hidden, cache, states, None if attentions is None else self._per_layer(attentions))

    @staticmethod
    def _written(cache: Cache, new: Any, valid: Bool[Array, "b t"], hidden: Float[Array, "b t d"]) -> Cache:
        """The cache with the new tokens, written after every layer has read the old ones.

        XLA writes in place only where the write visibly comes after the reads; otherwise it copies every buffer at
        every step. Hence a slot that depends on the result: nothing is added to it. (On a CPU an optimization barrier
        does not help.)
        """
        slot = cache.length + jnp.minimum(jnp.isnan(jnp.max(hidden)).astype(jnp.int32), 0)
        return cache._replace(
            self_attention=write(cache.self_attention, new, slot),
            valid=jax.lax.dynamic_update_slice_in_dim(cache.valid, valid, slot, 1),
            length=cache.length + valid.shape[1],
        )

    def _per_layer(self, per_group: Any) -> tuple[Array, ...]:
        """Groups of layers' outputs, listed or stacked, as one tuple over all layers."""
        if isinstance(self.groups, nnx.List):
            return sum(per_group, ())
        return tuple(per_group.reshape(-1, *per_group.shape[2:]))
