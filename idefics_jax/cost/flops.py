"""How many floating-point operations a forward pass, or a training step, needs.

Counted are the matrix products that the mathematics asks for, at 2 per multiply-add. What a program does beyond that
(computing activations again, masked halves of attention scores) is not: it makes a run slower, not more useful.
"""

from collections.abc import Callable
from typing import NamedTuple

from idefics_jax.checkpoints.hf_names import rules
from idefics_jax.config import IdeficsConfig


class StepFlops(NamedTuple):
    """FLOPs of one training step, by part of the model; their sum is the step's."""

    vision: float
    resampler: float
    cross_attention: float
    decoder: float
    head: float


def flops_by_part(
    config: IdeficsConfig, *, rows: int, sequence_length: int, images: int, trainable: Callable[[str], bool]
) -> StepFlops:
    """FLOPs of one training step over all devices: forward, and what of the backward pass the trained weights need.

    A token attends to half of its row, and to one image (what IDEFICS was trained with). Of low-rank adapters, what
    flows back to them is counted, their own small products are not.

    Args:
        config: of the model.
        rows: rows of the step.
        sequence_length: tokens in a row.
        images: images of the whole step.
        trainable: whether the stacked model has a weight at this path ("model/vision/layers/mlp/up/kernel", or an
            adapter's ".../attention/q/lora/a") that trains.
    """
    weights = set(rules(config))
    adapters = {f"{path.removesuffix('kernel')}lora/a" for path in weights if path.endswith("/kernel")}
    trained = {path for path in weights | adapters if trainable(path)}
    tokens, perceiver = rows * sequence_length, config.perceiver_config

    vision = _Count(trained)
    seen = _vision(vision, config, images)
    resampler = _Count(trained)
    if config.use_resampler:
        seen = _resampler(resampler, config, images, seen)
    per_image = perceiver.resampler_n_latents if config.use_resampler else seen.vectors // max(images, 1)

    cross, decoder, head = _Count(trained), _Count(trained), _Count(trained)
    x = decoder.through(Activations(tokens, config.hidden_size, False), "model/embedding")
    for index in range(config.num_hidden_layers):
        if index % config.cross_layer_interval == 0:
            x = _cross_attention(cross, config, x, seen, pairs=tokens * per_image if images else 0)
        x = _decoder_layer(decoder, config, x, pairs=tokens * sequence_length / 2)
    x = decoder.through(x, "model/decoder/norm")
    for table, size in ("table", config.vocab_size), ("additional", config.additional_vocab_size):
        head.linear(x, f"{'model/embedding' if config.tie_word_embeddings else 'head'}/{table}", size)
    return StepFlops(*(count.flops for count in (vision, resampler, cross, decoder, head)))


class Activations(NamedTuple):
    """So many vectors of some width; `live` where something before them trains, so that a gradient flows back."""

    vectors: float
    width: int
    live: bool


class _Count:
    """Adds up the FLOPs of a part of the model while activations are led through it."""

    def __init__(self, trained: set[str]):
        self.trained = trained
        self.flops = 0.0

    def trains(self, path: str) -> bool:
        return any(name == path or name.startswith(path + "/") for name in self.trained)

    def through(self, x: Activations, *paths: str) -> Activations:
        """Past weights that are not multiplied as matrices: norms and embeddings."""
        return x._replace(live=x.live or any(map(self.trains, paths)))

    def linear(self, x: Activations, path: str, width: int) -> Activations:
        """Forward, the weight's gradient where it trains, and the input's where one flows on."""
        trains = not self.trained.isdisjoint((path, f"{path}/kernel"))  # a table has no kernel below it
        self.flops += 2 * x.vectors * x.width * width * (1 + trains + x.live)
        return Activations(x.vectors, width, x.live or self.trains(path))

    def attend(self, query: Activations, key: Activations, value: Activations, pairs: float) -> Activations:
        """Scores and the mean of values, for so many pairs of a query and a key, and the gradients of all four."""
        scores_live = query.live or key.live
        products = 2 + (scores_live + query.live + key.live) + value.live
        self.flops += 2 * pairs * query.width * products
        return query._replace(live=scores_live or value.live)

    def attention(self, x: Activations, read: Activations, path: str, inner: int, pairs: float) -> Activations:
        """Attention of `x` to `read`, with its four linear maps."""
        query = self.through(self.linear(x, f"{path}/q", inner), f"{path}/q_norm")
        key = self.through(self.linear(read, f"{path}/k", inner), f"{path}/k_norm")
        value = self.linear(read, f"{path}/v", inner)
        return self.linear(self.attend(query, key, value, pairs), f"{path}/o", x.width)

    def mlp(self, x: Activations, path: str, hidden: int, ups: tuple[str, ...]) -> Activations:
        """An MLP, gated where it has two maps `ups`."""
        inner = [self.linear(x, f"{path}/{up}", hidden) for up in ups]
        return self.linear(inner[0]._replace(live=any(up.live for up in inner)), f"{path}/down", x.width)


def _vision(count: _Count, config: IdeficsConfig, images: int) -> Activations:
    vision, path = config.vision_config, "model/vision"
    patches = (vision.image_size // vision.patch_size) ** 2
    pixels = Activations(images * patches, vision.patch_size**2 * vision.num_channels, False)
    x = count.linear(pixels, f"{path}/patch_embedding", vision.embed_dim)._replace(vectors=images * (patches + 1))
    x = count.through(x, *(f"{path}/{name}" for name in ("class_embedding", "position_embedding", "pre_norm")))
    for _ in range(vision.num_hidden_layers):
        normed = count.through(x, f"{path}/layers/attention_norm")
        y = count.attention(
            normed, normed, f"{path}/layers/attention", vision.embed_dim, pairs=images * (patches + 1) ** 2
        )
        normed = count.through(x._replace(live=x.live or y.live), f"{path}/layers/mlp_norm")
        x = count.mlp(normed, f"{path}/layers/mlp", vision.intermediate_size, ("up",))
    return x


def _resampler(count: _Count, config: IdeficsConfig, images: int, context: Activations) -> Activations:
    perceiver, path = config.perceiver_config, "model/resampler"
    latents, inner = perceiver.resampler_n_latents, perceiver.resampler_n_heads * perceiver.resampler_head_dim
    x = count.through(Activations(images * latents, context.width, False), f"{path}/latents")
    for _ in range(perceiver.resampler_depth):
        normed = count.through(x, f"{path}/layers/attention/latents_norm")
        read = count.through(context, f"{path}/layers/attention/context_norm")
        read = read._replace(vectors=context.vectors + x.vectors, live=read.live or normed.live)
        per_image = read.vectors / max(images, 1)
        y = count.attention(normed, read, f"{path}/layers/attention", inner, pairs=x.vectors * per_image)
        normed = count.through(x._replace(live=x.live or y.live), f"{path}/layers/mlp_norm")
        x = count.mlp(normed, f"{path}/layers/mlp", 4 * x.width, ("up",))
    return count.through(x, f"{path}/norm")


def _cross_attention(
    count: _Count, config: IdeficsConfig, x: Activations, images: Activations, pairs: float
) -> Activations:
    path = "model/decoder/groups/cross"
    y = count.attention(count.through(x, f"{path}/attention_norm"), images, f"{path}/attention", x.width, pairs)
    x = count.through(x._replace(live=x.live or y.live), f"{path}/alpha_attention")
    y = count.mlp(count.through(x, f"{path}/mlp_norm"), f"{path}/mlp", config.intermediate_size, ("gate", "up"))
    return count.through(y, f"{path}/alpha_mlp")


def _decoder_layer(count: _Count, config: IdeficsConfig, x: Activations, pairs: float) -> Activations:
    path = "model/decoder/groups/layers"
    normed = count.through(x, f"{path}/attention_norm")
    y = count.attention(normed, normed, f"{path}/attention", x.width, pairs)
    x = count.through(x._replace(live=x.live or y.live), f"{path}/mlp_norm")
    return count.mlp(x, f"{path}/mlp", config.intermediate_size, ("gate", "up"))
