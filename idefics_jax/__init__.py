"""IDEFICS in JAX/Flax, for training and inference on TPU pods and GPU meshes."""

from idefics_jax.config import IdeficsConfig, IdeficsPerceiverConfig, IdeficsVisionConfig
from idefics_jax.model import IdeficsForVisionText2Text, IdeficsModel, IdeficsOutput
from idefics_jax.sharding import make_mesh

__all__ = [
    "IdeficsConfig",
    "IdeficsForVisionText2Text",
    "IdeficsModel",
    "IdeficsOutput",
    "IdeficsPerceiverConfig",
    "IdeficsVisionConfig",
    "make_mesh",
]
