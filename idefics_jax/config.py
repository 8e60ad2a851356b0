"""The architecture of an IDEFICS model, as frozen dataclasses.

Field names are those of `transformers`' `IdeficsConfig`; `config_json.py` reads and writes its `config.json`. A value
that this library does not implement is refused when the dataclass is made, by name, in one sentence.
"""

import json
import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from idefics_jax import config_json
from idefics_jax.utils.commit import committed
from idefics_jax.utils.hub import checkpoint_directory
from idefics_jax.utils.json_files import read_object
from idefics_jax.utils.paths import PathLike

ADAPTER = "adapter_config.json"
# The most that any field can be: far above every model that there is, and what a machine can still refuse in time.
LIMITS = {"num_hidden_layers": 256, "resampler_depth": 256, "image_size": 4096, "num_channels": 64}
SIZE_LIMIT = 2**24  # of all other sizes
ACTIVATION_NAMES = ("silu", "gelu", "quick_gelu", "gelu_pytorch_tanh", "gelu_new", "relu")


@dataclass(frozen=True)
class IdeficsVisionConfig:
    """The CLIP vision tower. The defaults are the reference class's; `embed_dim=1280` makes it ViT-H/14."""

    prefix: ClassVar[str] = "vision_config."

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

    def __post_init__(self):
        _check_sizes(self)
        _check_one_of(self, "hidden_act", ACTIVATION_NAMES)
        _check_one_of(self, "attention_dropout", (0.0,))
        _check_divides(self, "num_attention_heads", "embed_dim")
        _check_divides(self, "patch_size", "image_size")


@dataclass(frozen=True)
class IdeficsPerceiverConfig:
    """The Perceiver resampler."""

    prefix: ClassVar[str] = "perceiver_config."

    resampler_n_latents: int = 64
    resampler_depth: int = 6
    resampler_n_heads: int = 16
    resampler_head_dim: int = 96
    qk_layer_norms_perceiver: bool = False

    def __post_init__(self):
        _check_sizes(self)


@dataclass(frozen=True)
class IdeficsConfig:
    """The whole model: a LLaMA decoder with gated cross-attention to images.

    The defaults are the reference class's, which are not the 9B architecture: for that use `idefics_9b()`.

    Raises:
        ValueError: a value is not implemented, or does not fit another.
    """

    prefix: ClassVar[str] = ""

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

    def __post_init__(self):
        _check_sizes(self)
        _check_one_of(self, "hidden_act", ACTIVATION_NAMES)
        _check_one_of(self, "alpha_type", ("float", "vector"))
        _check_one_of(self, "alpha_initializer", ("zeros", "ones", "normal", "gaussian", "random"))
        _check_one_of(self, "dtype", ("bfloat16", "float32", "float16"))
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a share of 1, not {self.dropout}.")
        _check_divides(self, "num_attention_heads", "hidden_size")
        _check_divides(self, "cross_layer_interval", "num_hidden_layers")
        if (head_dim := self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(f"The rotary embedding turns pairs, but a head of {head_dim} dimensions is odd.")

    @classmethod
    def idefics_9b(cls) -> "IdeficsConfig":
        """HuggingFaceM4/idefics-9b: 8,929,679,632 parameters."""
        return _published(additional_vocab_size=2)

    @classmethod
    def idefics_9b_instruct(cls) -> "IdeficsConfig":
        """HuggingFaceM4/idefics-9b-instruct: one token more, `<end_of_utterance>`; 8,929,687,824 parameters."""
        return _published(additional_vocab_size=3)

    @classmethod
    def idefics_80b(cls) -> "IdeficsConfig":
        """HuggingFaceM4/idefics-80b: 79,967,843,624 parameters."""
        return _published(additional_vocab_size=2, **_80B)

    @classmethod
    def idefics_80b_instruct(cls) -> "IdeficsConfig":
        """HuggingFaceM4/idefics-80b-instruct: 79,967,860,008 parameters."""
        return _published(additional_vocab_size=3, **_80B)

    @classmethod
    def tiny(cls) -> "IdeficsConfig":
        """The instruct models' architecture with open gates, in 0.3 million float32 parameters, for tests."""
        return _published(
            vocab_size=512,
            additional_vocab_size=3,
            hidden_size=64,
            intermediate_size=80,
            num_hidden_layers=4,
            num_attention_heads=4,
            cross_layer_interval=2,
            alpha_initializer="ones",
            max_position_embeddings=512,
            dtype="float32",
            vision_config=IdeficsVisionConfig(
                embed_dim=32, image_size=28, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
            ),
            perceiver_config=IdeficsPerceiverConfig(
                resampler_n_latents=8,
                resampler_depth=2,
                resampler_n_heads=2,
                resampler_head_dim=12,
                qk_layer_norms_perceiver=True,
            ),
        )

    @classmethod
    def from_pretrained(cls, path: PathLike) -> "IdeficsConfig":
        """The configuration in `config.json` of a checkpoint: a directory, a URL or, where `path` is none, a hub id.

        Raises:
            FileNotFoundError: there is no such directory, file or hub model.
            ValueError: the file is not JSON, or holds what `from_dict` refuses.
        """
        file = checkpoint_directory(path, ["config.json", ADAPTER]) / "config.json"
        if (file.parent / ADAPTER).exists():
            raise ValueError(
                f"{file.parent} holds a PEFT adapter, and no whole model: merge it in PEFT by merge_and_unload(), save "
                "the result, and load that."
            )
        if not file.exists():
            raise FileNotFoundError(f"{file.parent} has no config.json; point to the directory of a checkpoint.")
        values = read_object(file)
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "IdeficsConfig":
        """Reads the fields of a Hugging Face `config.json` as any version of transformers writes them; null is absent.

        Raises:
            ValueError: a field is unknown, or its value has the wrong type, is not implemented or contradicts another.
        """
        return config_json.read(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """The fields of a Hugging Face `config.json` that transformers 4.32 to 5.x read."""
        return config_json.write(self)

    def save_pretrained(self, directory: PathLike) -> None:
        """Write `config.json` into `directory`, which is made where it is missing.

        Raises:
            OSError: the directory cannot be written; what was in it is unchanged.
        """
        with committed(directory) as folder:
            text = json.dumps(self.to_dict(), indent=2, sort_keys=True)
            (folder / "config.json").write_text(text + "\n", encoding="utf-8")


_80B = {
    "hidden_size": 8192,
    "intermediate_size": 22016,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "rms_norm_eps": 1e-5,
}


def _published(**values: Any) -> IdeficsConfig:
    """What the four published checkpoints have in common; the defaults of the class are 9B's sizes."""
    shared = {
        "cross_layer_interval": 4,
        "qk_layer_norms": True,
        "use_resampler": True,
        "freeze_text_layers": False,
        "freeze_vision_layers": False,
        "vision_config": IdeficsVisionConfig(embed_dim=1280),
        "perceiver_config": IdeficsPerceiverConfig(qk_layer_norms_perceiver=True),
    }
    return IdeficsConfig(**{**shared, **values})


def _check_sizes(config: Any) -> None:
    for item in fields(config):
        value, name = getattr(config, item.name), f"{config.prefix}{item.name}"
        if item.type is int:
            if type(value) is not int:
                raise ValueError(f"{name} must be int, but is {value!r}.")
            least = 0 if item.name == "additional_vocab_size" or item.name.endswith("_id") else 1
            if value < least:
                raise ValueError(f"{name} must be at least {least}, but is {value}.")
            if value > (most := LIMITS.get(item.name, SIZE_LIMIT)):
                raise ValueError(f"{name} must be at most {most:,}, but is {value:,}; no checkpoint has as many.")
        elif item.type is float and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, but is {value}.")


def _check_one_of(config: Any, name: str, choices: tuple) -> None:
    if (value := getattr(config, name)) not in choices:
        known = ", ".join(str(choice) for choice in choices)
        raise ValueError(f"{config.prefix}{name} {value!r} is not implemented; known: {known}.")


def _check_divides(config: Any, divisor: str, dividend: str) -> None:
    if getattr(config, dividend) % getattr(config, divisor):
        raise ValueError(
            f"{config.prefix}{dividend} ({getattr(config, dividend)}) must be a multiple of "
            f"{config.prefix}{divisor} ({getattr(config, divisor)})."
        )
