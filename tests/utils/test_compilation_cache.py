"""Compiled programs are kept for Python users, unless they say otherwise or nothing can be written."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import jax
from idefics_jax.utils.compilation_cache import keep_compiled_programs
keep_compiled_programs()
print(jax.jit(lambda x: x + 1)(1.0))
"""


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, True),
        ({"JAX_ENABLE_COMPILATION_CACHE": "0"}, False),
        ({"XDG_CACHE_HOME": "", "HOME": "/proc/nobody"}, False),  # where nothing can be written
    ],
)
def test_programs_are_kept_if_they_can_be(settings, kept, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)} | settings
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert (run.stdout, run.stderr, run.returncode) == ("2.0\n", "", 0)
    assert any((tmp_path / "idefics-jax" / "compiled").glob("*")) == kept
