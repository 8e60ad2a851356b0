"""The architecture of an IDEFICS model, as frozen dataclasses.

Field names are those of `transformers`' `IdeficsConfig`, so that a Hugging Face `config.json` reads as it stands.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class IdeficsVisionConfig:
    """The CLIP vision tower. The defaults are the reference class's, not ViT-H's."""

    embed_dim: int = 768
    image_size: int = 224
    intermediate_size: int = 5120
    patch_size: int = 14
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    num_channels: int = 3
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_factor: float = 1.0


@dataclass(frozen=True)
class IdeficsPerceiverConfig:
    """The Perceiver resampler."""

    resampler_n_latents: int = 64
    resampler_depth: int = 6
    resampler_n_heads: int = 16
    resampler_head_dim: int = 96
    qk_layer_norms_perceiver: bool = False


@dataclass(frozen=True)
class IdeficsConfig:
    """The whole model: a LLaMA decoder with gated cross-attention to images."""

    vocab_size: int = 32000
    additional_vocab_size: int = 0
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    dropout: float = 0.0
    hidden_act: str = "silu"
    initializer_range: float = 0.02
    alpha_initializer: str = "zeros"
    alphas_initializer_range: float = 0.0
    alpha_type: str = "float"
    rms_norm_eps: float = 1e-6
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int | tuple[int, ...] = 2
    tie_word_embeddings: bool = False
    cross_layer_interval: int = 1
    qk_layer_norms: bool = False
    freeze_text_layers: bool = True
    freeze_text_module_exceptions: tuple[str, ...] = ()
    freeze_lm_head: bool = False
    freeze_vision_layers: bool = True
    freeze_vision_module_exceptions: tuple[str, ...] = ()
    use_resampler: bool = False
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    dtype: str = "bfloat16"  # of computation; softmax, norms and loss are float32 whatever it is
    vision_config: IdeficsVisionConfig = field(default_factory=IdeficsVisionConfig)
    perceiver_config: IdeficsPerceiverConfig = field(default_factory=IdeficsPerceiverConfig)
