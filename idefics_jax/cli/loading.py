"""What both commands need before they can answer: the model, the cache of compiled programs, the rules of choosing."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idefics_jax.cli.devices import start
from idefics_jax.cli.process import tell
from idefics_jax.config import IdeficsConfig
from idefics_jax.images import HighDepth
from idefics_jax.pocket import POCKET
from idefics_jax.processor import IdeficsProcessor

if TYPE_CHECKING:
    from idefics_jax.memory import Request


def cache_directory() -> Path | None:
    """Return where this user's programs keep what they can make again: `idefics-jax` in the platform's own place.

    None where the user has no home.
    """
    windows = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None
    given = Path(windows or os.environ.get("XDG_CACHE_HOME") or "")
    if given.is_absolute():  # others are to be ignored, says the XDG specification
        return given / "idefics-jax"
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and no account either
        return None
    places = {"win32": "AppData/Local", "darwin": "Library/Caches"}
    return home / places.get(sys.platform, ".cache") / "idefics-jax"


def keep_compiled_programs() -> None:
    """Turn on JAX's persistent compilation cache; what the user set in JAX's own variables stays."""
    import jax

    folder: Path | str | None = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        own = cache_directory()
        folder = own and own / "compiled"
        jax.config.update("jax_compilation_cache_dir", folder and str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if folder and "://" not in str(folder) and jax.config.jax_enable_compilation_cache and not _is_writable(folder):
        note(f"Compiled programs are not kept: {folder} cannot be written; JAX_COMPILATION_CACHE_DIR names another.")
        jax.config.update("jax_enable_compilation_cache", False)


def _is_writable(folder: Path | str) -> bool:
    """Make a directory, and return True if files can be made in it."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except (OSError, ValueError):
        return False


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

    from idefics_jax.memory import request_needs
    from idefics_jax.model import IdeficsForVisionText2Text
    from idefics_jax.sharding import make_mesh

    start()
    keep_compiled_programs()
    mesh = None if mesh_sizes is None else make_mesh(**mesh_sizes)
    if dtype is None and jax.default_backend() == "cpu":
        dtype = "float32"
        if path != POCKET and IdeficsConfig.from_pretrained(path).dtype != dtype:
            note("Computing in float32; on a CPU bfloat16 is slower, and takes more memory while it computes.")
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


def choosing(options: argparse.Namespace, processor: IdeficsProcessor, config: IdeficsConfig) -> dict[str, Any]:
    """The arguments of `generate` that say how tokens are chosen and what ends an answer."""
    draws = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    draws = {name: value for name, value in draws.items() if value is not None}
    do_sample = bool(draws) and options.temperature != 0
    tokenizer = processor.tokenizer
    eos = config.eos_token_id if isinstance(config.eos_token_id, tuple) else (config.eos_token_id,)
    return {
        "do_sample": do_sample,
        **(draws if do_sample else {}),
        "seed": options.seed,
        "repetition_penalty": options.repetition_penalty,
        "max_new_tokens": options.max_new_tokens,
        "min_new_tokens": options.min_new_tokens,
        "bad_words_ids": [tokenizer.encode(word) for word in options.bad_word],
        "suppress_tokens": [processor.fake_token_id, processor.image_token_id],
        "eos_token_id": list(dict.fromkeys([*eos, *processor.answer_ends])),
        "stop_strings": options.stop,
        "tokenizer": processor,
    }


def note(text: str) -> None:
    """Print a remark beside the answers."""
    tell(text)
