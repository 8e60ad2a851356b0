"""What both commands need before they can answer: the model, the cache of compiled programs, the rules of choosing."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from idefics_jax.cli.devices import start
from idefics_jax.cli.process import tell
from idefics_jax.config import IdeficsConfig
from idefics_jax.generation_config import DEFAULTS, GenerationConfig, as_list
from idefics_jax.pocket import POCKET
from idefics_jax.processing.images import HighDepth
from idefics_jax.processing.processor import IdeficsProcessor
from idefics_jax.utils.hub import checkpoint_directory

if TYPE_CHECKING:
    from idefics_jax.parallel.memory import Request


MAX_NEW_TOKENS = {"generate": 100, "chat": 256}  # where neither the option nor the checkpoint says
DRAWING = ("temperature", "top_k", "top_p", "min_p")
CHECKED = (*DRAWING, "max_new_tokens", "min_new_tokens", "repetition_penalty", "num_beams", "length_penalty")
CHECKED += ("num_return_sequences",)


def load_model(
    path: str,
    dtype: str | None,
    mesh_sizes: dict[str, Any] | None = None,
    request: "Callable[[IdeficsConfig], Request] | None" = None,
) -> Any:
    """The model at `path` on a mesh of these sizes or one device, computing in `dtype` or in what suits it and them.

    Args:
        request: the least that will be asked of the model, which has to fit into memory with it.

    Raises:
        ValueError, OSError: one sentence on what is wrong with the checkpoint, the mesh or the memory.
    """
    import jax

    from idefics_jax.model import IdeficsForVisionText2Text
    from idefics_jax.parallel.memory import CPU_WIDENS_WEIGHTS, request_needs
    from idefics_jax.parallel.mesh import make_mesh
    from idefics_jax.utils.compilation_cache import keep_compiled_programs

    start()
    keep_compiled_programs(note)
    mesh = None if mesh_sizes is None else make_mesh(**mesh_sizes)
    if dtype is None and jax.default_backend() == "cpu":
        dtype = "float32"
        if path != POCKET and IdeficsConfig.from_pretrained(path).dtype != dtype:
            memory = "more" if CPU_WIDENS_WEIGHTS else "less"
            note(f"Computing in float32; on a CPU bfloat16 is slower, and takes {memory} memory while it computes.")
    return IdeficsForVisionText2Text.from_pretrained(
        path,
        dtype=dtype or "auto",
        mesh=mesh,
        progress=sys.stderr.isatty(),
        needs=lambda shapes: {} if request is None else request_needs(shapes, mesh, request(shapes.config)),
    )


def load_processor(path: str, high_depth: HighDepth | None, remote_images: bool = True) -> IdeficsProcessor:
    """Load the processor at `path`, which reads images as the options say."""
    processor = IdeficsProcessor.from_pretrained(path)
    changes: dict[str, Any] = {} if high_depth is None else {"high_depth": high_depth}
    if not remote_images:
        changes["fetch"] = None
    return IdeficsProcessor(replace(processor.image_processor, **changes), processor.tokenizer)


def fill_in(options: argparse.Namespace) -> None:
    """Fills in the options that were not given, by the checkpoint's `generation_config.json` where it has them.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    directory = checkpoint_directory(options.model)
    own = GenerationConfig.from_pretrained(directory, IdeficsConfig.from_pretrained(directory))
    options.own = own
    drawing = [name for name in DRAWING if getattr(options, name) is not None]
    one_answer = getattr(options, "stream", options.command == "chat")
    if options.temperature != 0 and (drawing or (own.do_sample and not getattr(options, "num_beams", None))):
        for name in DRAWING:
            if getattr(options, name) is None:
                setattr(options, name, getattr(own, name))
        options.temperature = 1.0 if options.temperature is None else options.temperature
        one_answer = True  # of a search; several can be drawn
    single = {"num_beams": 1} if one_answer else {}
    for name, default in (DEFAULTS | {"max_new_tokens": MAX_NEW_TOKENS[options.command]}).items():
        if name not in DRAWING and getattr(options, name, default) is None:
            value = getattr(own, name)
            setattr(options, name, single.get(name, default if value is None else value))


def check_settings(options: argparse.Namespace) -> None:
    """Checks the options of how tokens are chosen, before a model is loaded.

    Raises:
        ValueError: one sentence on an option that is out of range.
    """
    chosen = {name: getattr(options, name) for name in CHECKED if getattr(options, name, None) is not None}
    if options.temperature == 0:
        del chosen["temperature"]
    GenerationConfig(**chosen, stop_strings=options.stop, do_sample=draws(options)).check()


def draws(options: argparse.Namespace) -> bool:
    """Return True if tokens are drawn: an option of drawing was given, and the temperature is not 0."""
    return options.temperature != 0 and any(getattr(options, name) is not None for name in DRAWING)


def choosing(options: argparse.Namespace, processor: IdeficsProcessor) -> dict[str, Any]:
    """The arguments of `generate` that say how tokens are chosen and what ends an answer."""
    drawing = {name: getattr(options, name) for name in DRAWING if getattr(options, name) is not None}
    tokenizer, own = processor.tokenizer, options.own
    eos = own.eos_token_id if isinstance(own.eos_token_id, list | tuple) else [own.eos_token_id]
    return {
        "do_sample": draws(options),
        **(drawing if draws(options) else {}),
        "seed": options.seed,
        "repetition_penalty": options.repetition_penalty,
        "max_new_tokens": options.max_new_tokens,
        "min_new_tokens": options.min_new_tokens,
        "num_beams": getattr(options, "num_beams", 1),
        "num_return_sequences": getattr(options, "num_return_sequences", 1),
        "bad_words_ids": [*(own.bad_words_ids or ()), *(tokenizer.encode(word) for word in options.bad_word)],
        "suppress_tokens": [*(own.suppress_tokens or ()), processor.fake_token_id, processor.image_token_id],
        "eos_token_id": list(dict.fromkeys([*(id for id in eos if id is not None), *processor.answer_ends])),
        "stop_strings": [*as_list(own.stop_strings), *options.stop],
        "tokenizer": processor,
    }


def note(text: str) -> None:
    """Print a remark beside the answers."""
    tell(text)
