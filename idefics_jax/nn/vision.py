"""The vision tower: CLIP's ViT (Radford et al. 2021), read just before its last layer norm."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from idefics_jax.config import IdeficsVisionConfig
from idefics_jax.kernels.splash import flash_attention_to_all
from idefics_jax.nn.attention import attention
from idefics_jax.nn.layers import MLP, LayerNorm, Linear, normal, parameter
from idefics_jax.nn.stack import Remat, init_layers, scan_layers
from idefics_jax.parallel.mesh import constrain, platform, reshape


class VisionAttention(nnx.Module):
    """Bidirectional self-attention with biases."""

    def __init__(self, config: IdeficsVisionConfig, key: Array):
        q, k, v, o = jax.random.split(key, 4)
        embed, std = {"embed": config.embed_dim}, config.initializer_range
        heads = {"heads": config.num_attention_heads, "head_dim": config.embed_dim // config.num_attention_heads}
        self.q = Linear(q, embed, heads, std=std, bias=True)
        self.k = Linear(k, embed, heads, std=std, bias=True)
        self.v = Linear(v, embed, heads, std=std, bias=True)
        self.o = Linear(o, heads, embed, std=std, bias=True)

    def __call__(self, x: Float[Array, "b p d"]) -> Float[Array, "b p d"]:
        attend = flash_attention_to_all if platform() == "tpu" else attention
        return self.o(attend(self.q(x), self.k(x).swapaxes(1, 2), self.v(x).swapaxes(1, 2)))


class VisionLayer(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: IdeficsVisionConfig, key: Array):
        attention_key, mlp_key = jax.random.split(key)
        self.attention_norm = LayerNorm(config.embed_dim, config.layer_norm_eps)
        self.attention = VisionAttention(config, attention_key)
        self.mlp_norm = LayerNorm(config.embed_dim, config.layer_norm_eps)
        self.mlp = MLP(
            mlp_key,
            config.embed_dim,
            config.intermediate_size,
            config.hidden_act,
            std=config.initializer_range,
            bias=True,
        )

    def __call__(self, x: Float[Array, "b p d"]) -> Float[Array, "b p d"]:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class VisionTower(nnx.Module):
    """Pixels to one vector per patch, plus the class token in front."""

    def __init__(self, config: IdeficsVisionConfig, key: Array, stacked: bool = False):
        class_key, patch_key, position_key, layers_key = jax.random.split(key, 4)
        embed, patch, std = config.embed_dim, config.patch_size, config.initializer_range
        positions = (config.image_size // patch) ** 2 + 1
        self.config = config
        self.class_embedding = parameter((embed,), (None,), normal(class_key, std))
        self.patch_embedding = Linear(
            patch_key, {"height": patch, "width": patch, "channels": config.num_channels}, {"embed": embed}, std=std
        )
        self.position_embedding = parameter((positions, embed), (None, None), normal(position_key, std))
        self.pre_norm = LayerNorm(embed, config.layer_norm_eps)
        self.layers = init_layers(lambda key: VisionLayer(config, key), layers_key, config.num_hidden_layers, stacked)
        self.post_norm = LayerNorm(embed, config.layer_norm_eps)

    @jax.named_scope("vision")
    def __call__(
        self,
        pixel_values: Float[Array, "b height width c"],
        interpolate_pos_encoding: bool = False,
        remat: Remat = "none",
    ) -> Float[Array, "b p d"]:
        """Patch states before the post-norm: what the resampler reads. `p` counts the class token, which comes first.

        Raises:
            ValueError: the images are not of the configured size and `interpolate_pos_encoding` is False.
        """
        patches = self.patch_embedding(self._patches(pixel_values, interpolate_pos_encoding))
        class_token = jnp.broadcast_to(
            self.class_embedding[...].astype(patches.dtype), (patches.shape[0], 1, patches.shape[-1])
        )
        x = jnp.concatenate([constrain(class_token, "batch"), patches], axis=1)
        x = x + self._positions(pixel_values.shape[1], pixel_values.shape[2]).astype(x.dtype)
        x, _ = scan_layers(lambda x, layer: (layer(x), ()), self.pre_norm(x), self.layers, remat=remat)
        return x

    def pooled(self, patch_states: Float[Array, "b p d"]) -> Float[Array, "b d"]:
        """Return a vector per image: the normed class token, CLIP's image feature before its projection."""
        return self.post_norm(patch_states[:, 0])

    def _patches(self, pixels: Float[Array, "b height width c"], interpolate: bool) -> Float[Array, "b p ph pw c"]:
        (batch, height, width, channels), config = pixels.shape, self.config
        if channels != config.num_channels:
            raise ValueError(
                f"pixel_values must be channels-last, [..., height, width, {config.num_channels}], not {pixels.shape}."
            )
        if (height, width) != (config.image_size, config.image_size) and not interpolate:
            raise ValueError(
                f"Images of {height}x{width} pixels do not fit a model made for "
                f"{config.image_size}x{config.image_size}; resize them or pass interpolate_pos_encoding=True."
            )
        size = config.patch_size
        rows, columns = height // size, width // size
        pixels = pixels[:, : rows * size, : columns * size]
        grid = reshape(pixels, (batch, rows, size, columns, size, channels), "batch").swapaxes(2, 3)
        return reshape(grid, (batch, rows * columns, size, size, channels), "batch")

    def _positions(self, height: int, width: int) -> Float[Array, "p d"]:
        config, table = self.config, self.position_embedding[...]
        if (height, width) == (config.image_size, config.image_size):
            return table
        grid = config.image_size // config.patch_size
        vertical, horizontal = (bicubic_matrix(grid, pixels // config.patch_size) for pixels in (height, width))
        patches = table[1:].astype(jnp.float32).reshape(grid, grid, -1)
        patches = jnp.einsum("rh,cw,hwd->rcd", vertical, horizontal, patches).reshape(-1, table.shape[-1])
        return jnp.concatenate([table[:1], patches.astype(table.dtype)])


def bicubic_matrix(old: int, new: int) -> np.ndarray:
    """`[new, old]` float32: bicubic interpolation of `old` samples to `new` as one matrix.

    It is what `torch.nn.functional.interpolate` does with a scale of `(new + 0.1) / old` (a convolution kernel with
    a = -0.75, half-pixel centres, edge samples repeated): the reference adds 0.1 against rounding, and the scale, not
    the size, then places the samples.
    """
    source = (np.arange(new) + 0.5) * (old / (new + 0.1)) - 0.5
    start = np.floor(source).astype(int)
    offset, a = source - start, -0.75

    def near(x):
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x):
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    matrix = np.zeros((new, old))
    for tap, weight in enumerate([far(offset + 1), near(offset), near(1 - offset), far(2 - offset)]):
        np.add.at(matrix, (np.arange(new), np.clip(start + tap - 1, 0, old - 1)), weight)
    return matrix.astype(np.float32)
