"""The optimizer: learning-rate schedules, weight decay where it belongs, clipping, and optax's optimizers by name."""

import inspect
from typing import Any

import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from .config import OptimizerConfig


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The rate of each step: warm-up from 0, then constant, or down to the final rate along a line or a cosine.

    As in PyTorch's schedules the first step of a warm-up has rate 0.
    """
    decay = max(1, (config.decay_steps or steps) - config.warmup_steps)
    peak, end = config.learning_rate, config.final_learning_rate
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, end, decay),
        "cosine": optax.cosine_decay_schedule(peak, decay, alpha=end / peak if peak else 0.0),
    }[config.schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, config.warmup_steps), after], [config.warmup_steps])


def decays(path: str) -> bool:
    """Whether weight decay applies: not to biases, alphas, norms and the resampler (`m4/training/trainer.py`)."""
    return not (path.endswith("bias") or "alpha_" in path or "norm/" in path or path.startswith("model/resampler"))


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping, then the optimizer, for parameters in dictionaries nested by path.

    Raises:
        ValueError: optax has no optimizer of that name, or it takes no learning rate.
    """
    make: Any = getattr(optax, config.name, None)
    takes = inspect.signature(make).parameters if callable(make) else {}
    if "learning_rate" not in takes:
        raise ValueError(f"optax has no optimizer {config.name!r}; adamw, adafactor, lion and sgd are some.")

    def mask(params: Any) -> Any:
        return unflatten_dict({path: decays("/".join(path)) for path in flatten_dict(params)})

    known = {
        "b1": config.b1,
        "b2": config.b2,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
        "weight_decay_rate": config.weight_decay or None,  # adafactor's
        "mask": mask,
        "weight_decay_mask": mask,
        "mu_dtype": config.first_moment,
    }
    if config.name == "adafactor":
        known.pop("eps")  # another quantity than Adam's
    if config.weight_decay and not {"weight_decay", "weight_decay_rate"} & set(takes):
        raise ValueError(f"optax's {config.name} has no weight decay; set it to 0.")
    arguments: Any = {name: value for name, value in known.items() if name in takes}
    optimizer: Any = make(learning_rate=schedule(config, steps), **arguments)
    return optimizer if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), optimizer)
