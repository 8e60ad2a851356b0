"""The Perceiver resampler (Alayrac et al. 2022, section 3.1): any number of patch states to a fixed few latents."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from idefics_jax.config import IdeficsConfig
from idefics_jax.nn.attention import attention
from idefics_jax.nn.layers import MLP, LayerNorm, Linear, normal, parameter
from idefics_jax.nn.stack import Remat, init_layers, scan_layers
from idefics_jax.parallel.mesh import constrain

LAYER_NORM_EPS = 1e-5  # not in the config: PyTorch's default, which the reference uses here


class ResamplerAttention(nnx.Module):
    """Latents look at the patches and at themselves."""

    def __init__(self, config: IdeficsConfig, key: Array):
        perceiver, embed_dim = config.perceiver_config, config.vision_config.embed_dim
        q, k, v, o = jax.random.split(key, 4)
        embed, std = {"embed": embed_dim}, math.sqrt(0.4 / embed_dim)
        heads = {"heads": perceiver.resampler_n_heads, "head_dim": perceiver.resampler_head_dim}
        self.context_norm = LayerNorm(embed_dim, LAYER_NORM_EPS)
        self.latents_norm = LayerNorm(embed_dim, LAYER_NORM_EPS)
        self.q = Linear(q, embed, heads, std=std)
        self.k = Linear(k, embed, heads, std=std)
        self.v = Linear(v, embed, heads, std=std)
        self.o = Linear(o, heads, embed, std=std)
        qk_norms = perceiver.qk_layer_norms_perceiver
        self.q_norm = LayerNorm(perceiver.resampler_head_dim, LAYER_NORM_EPS) if qk_norms else None
        self.k_norm = LayerNorm(perceiver.resampler_head_dim, LAYER_NORM_EPS) if qk_norms else None

    def __call__(self, latents: Float[Array, "b r d"], context: Float[Array, "b p d"]) -> Float[Array, "b r d"]:
        latents = self.latents_norm(latents)
        read = jnp.concatenate([self.context_norm(context), latents], axis=1)
        query, key, value = self.q(latents), self.k(read), self.v(read)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        return self.o(attention(query, key.swapaxes(1, 2), value.swapaxes(1, 2)))


class ResamplerLayer(nnx.Module):
    """Attention to the patches, then a ReLU MLP four times as wide, each added to the latents."""

    def __init__(self, config: IdeficsConfig, key: Array):
        attention_key, mlp_key = jax.random.split(key)
        embed = config.vision_config.embed_dim
        self.attention = ResamplerAttention(config, attention_key)
        self.mlp_norm = LayerNorm(embed, LAYER_NORM_EPS)
        self.mlp = MLP(mlp_key, embed, 4 * embed, "relu", std=math.sqrt(0.4 / embed), bias=False)

    def __call__(self, latents: Float[Array, "b r d"], context: Float[Array, "b p d"]) -> Float[Array, "b r d"]:
        latents = latents + self.attention(latents, context)
        return latents + self.mlp(self.mlp_norm(latents))


class PerceiverResampler(nnx.Module):
    """`[b, p, d]` patch states to `[b, r, d]` latents."""

    def __init__(self, config: IdeficsConfig, key: Array, stacked: bool = False):
        latents_key, layers_key = jax.random.split(key)
        perceiver, embed = config.perceiver_config, config.vision_config.embed_dim
        self.latents = parameter(
            (perceiver.resampler_n_latents, embed), (None, None), normal(latents_key, 1 / math.sqrt(embed))
        )
        self.layers = init_layers(
            lambda key: ResamplerLayer(config, key), layers_key, perceiver.resampler_depth, stacked
        )
        self.norm = LayerNorm(embed, LAYER_NORM_EPS)

    @jax.named_scope("resampler")
    def __call__(self, context: Float[Array, "b p d"], remat: Remat = "none") -> Float[Array, "b r d"]:
        latents = jnp.broadcast_to(self.latents[...].astype(context.dtype), (context.shape[0], *self.latents.shape))
        latents = constrain(latents, "batch")
        latents, _ = scan_layers(
            lambda latents, layer: (layer(latents, context), ()), latents, self.layers, remat=remat
        )
        return self.norm(latents)
