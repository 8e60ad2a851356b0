"""IDEFICS in JAX/Flax, for training and inference on TPU pods and GPU meshes.

The names below are imported when they are first used: the processor then works, in data workers too, without JAX.
"""

from importlib import import_module

TYPE_CHECKING = False  # which type checkers take for true; `typing` takes longer to import than all else here
if TYPE_CHECKING:
    from idefics_jax.config import IdeficsConfig, IdeficsPerceiverConfig, IdeficsVisionConfig
    from idefics_jax.generation_config import GenerationConfig
    from idefics_jax.model import IdeficsForVisionText2Text, IdeficsModel, IdeficsOutput
    from idefics_jax.parallel.mesh import make_mesh
    from idefics_jax.pocket import POCKET
    from idefics_jax.processing.image_processor import IdeficsImageProcessor
    from idefics_jax.processing.processor import IdeficsProcessor

__all__ = [
    "POCKET",
    "GenerationConfig",
    "IdeficsConfig",
    "IdeficsForVisionText2Text",
    "IdeficsImageProcessor",
    "IdeficsModel",
    "IdeficsOutput",
    "IdeficsPerceiverConfig",
    "IdeficsProcessor",
    "IdeficsVisionConfig",
    "make_mesh",
]


_MODULES = {
    "POCKET": "pocket",
    "GenerationConfig": "generation_config",
    "IdeficsConfig": "config",
    "IdeficsForVisionText2Text": "model",
    "IdeficsImageProcessor": "processing.image_processor",
    "IdeficsModel": "model",
    "IdeficsOutput": "model",
    "IdeficsPerceiverConfig": "config",
    "IdeficsProcessor": "processing.processor",
    "IdeficsVisionConfig": "config",
    "make_mesh": "parallel.mesh",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("idefics-jax")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
