"""Eight CPU devices for every test, so that sharding is exercised on any machine, and checked signatures."""

import gc
import os
import signal
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping import install_import_hook

# Tracing makes millions of objects that live on; looking through them for garbage takes a tenth of the time.
gc.set_threshold(200_000, 20, 20)
# In the background of a shell that has no job control, interrupts are ignored, and by every child too.
signal.signal(signal.SIGINT, signal.default_int_handler)
# All this is read when JAX starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    # Tests compile more than they compute: without optimization they take little more than half the time.
    flags = (
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
        "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE --xla_cpu_parallel_codegen_split_count=1"
    )
    if version("jaxlib").startswith("0.10."):
        # Compiles a training step in half the time once more. Later XLAs end the process at a flag they do not know.
        flags += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
# Compiled programs outlive the run (and are shared with the command line's processes that tests start).
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "jax"))
# Where in the code each operation comes from is written into programs, but no test reads it.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# Checks the shapes, dtypes and types on every signature of the library. An int will do for a float; beartype is shown
# the methods one by one, so it cannot know what Self is.
check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({Self: Any})))
install_import_hook("idefics_jax", f"{__name__}.check")
