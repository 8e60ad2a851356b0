"""Options that programs are compiled with, beside those that a user gives to XLA."""

import os
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp
from idefics_jax.parallel.hardware import DECODING
twice = jax.jit(lambda x: jnp.flip(jnp.flip(x, 0), 0), compiler_options=DECODING).lower(jnp.ones(8)).compile()
print(DECODING["xla_disable_hlo_passes"], "reverse(" in twice.as_text())
"""


def test_passes_that_a_user_disables_stay_disabled():
    """The algebraic simplifier, without which a vector is turned round twice."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_disable_hlo_passes=algsimp"}
    found = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["algsimp,dot-strength-reduction", "True"]
