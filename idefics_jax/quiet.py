"""Standard error without the lines of C++ libraries."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

DEBUG = "IDEFICS_JAX_DEBUG"


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what libraries write to standard error meanwhile, unless the environment has IDEFICS_JAX_DEBUG.

    libtpu prints lines of its own wherever it is installed without a TPU, and no setting of it turns them off; JAX
    logs a traceback where its CUDA plugin finds no GPU. Errors are exceptions, and pass.
    """
    if os.environ.get(DEBUG):
        yield
        return
    logger = logging.getLogger("jax._src.xla_bridge")
    level = logger.level
    before = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        logger.setLevel(logging.CRITICAL)
        yield
    finally:
        logger.setLevel(level)
        os.dup2(before, 2)
        os.close(before)
        os.close(null)
