"""What trains: which of a model's weights, by their paths, and a model's weights in two halves."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from idefics_jax.checkpoints import hf_names
from idefics_jax.config import IdeficsConfig

#: Modules that a config may except from freezing, as PyTorch calls them, and the ends of our paths to their weights.
#: The decoder's norms are none of PyTorch's LayerNorms, and the patch embedding is a convolution.
EXCEPTIONS: dict[str, Callable[[str], bool]] = {
    "LayerNorm": lambda path: "norm/" in path and path.startswith("model/vision/"),
    "Linear": lambda path: any(part in path for part in ("attention/", "mlp/")) and "norm/" not in path,
    "Embedding": lambda path: path.endswith("position_embedding"),
}


def trains(name: str, config: IdeficsConfig) -> Callable[[str], bool]:
    """Whether the weight at a path trains, by the name of what does (`--trainable`).

    Raises:
        ValueError: the config excepts modules from freezing that it cannot.
    """
    for field in ("freeze_text_module_exceptions", "freeze_vision_module_exceptions"):
        if unknown := set(getattr(config, field)) - set(EXCEPTIONS):
            raise ValueError(f"{field} names {', '.join(sorted(unknown))}; known: {', '.join(EXCEPTIONS)}.")

    def excepted(path: str, names: tuple[str, ...]) -> bool:
        return any(EXCEPTIONS[name](path) for name in names)

    def outside_backbones(path: str) -> bool:
        if path.startswith(("model/decoder/groups/layers/", "model/decoder/norm/")):
            return excepted(path, config.freeze_text_module_exceptions)
        if path.startswith("model/vision/"):
            return excepted(path, config.freeze_vision_module_exceptions)
        return True

    def head(path: str) -> bool:
        tied = path == "model/embedding/table" and config.tie_word_embeddings
        return path.startswith("head/") or path == "model/embedding/additional" or tied

    return {
        "full": lambda path: True,
        "idefics": lambda path: outside_backbones(path) and path not in ("model/embedding/table", "head/table"),
        "frozen-backbones": outside_backbones,
        "heads": head,
        "lora": lambda path: "/lora/" in path,
    }[name]


class Template(NamedTuple):
    """A model without its weights: its structure, and the path of each leaf."""

    structure: Any
    paths: tuple[str, ...]

    def join(self, *halves: Any) -> Any:
        """The model with the weights in these nested dictionaries, as `split` made them."""
        leaves = {path: leaf for half in halves for path, leaf in flatten_dict(half, sep="/").items()}
        return jax.tree.unflatten(self.structure, [leaves[path] for path in self.paths])


def split(model: Any, trains: Callable[[str], bool]) -> tuple[Template, Any, Any]:
    """The model's template, and its weights that train and those that do not, as dictionaries nested by path."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(model)
    named = {hf_names.path_of(keys): leaf for keys, leaf in leaves}
    training, frozen = ({path: leaf for path, leaf in named.items() if trains(path) is half} for half in (True, False))
    return Template(structure, tuple(named)), unflatten_dict(training, sep="/"), unflatten_dict(frozen, sep="/")
