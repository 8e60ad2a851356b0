"""What the TPU compiler says of a compiled program, without a TPU: how long a step takes, and how much memory.

    topology = jax.experimental.topologies.get_topology_desc("v5e:4x4", platform="tpu")  # needs libtpu, no TPU
    compiled = jax.jit(step, donate_argnums=0).lower(*shapes_sharded_over(topology.devices)).compile()
    cost = analyze(compiled.as_text(), chip("v5e"), len(topology.devices))
    cost.step_seconds, cost.by_component, cost.bound, memory(compiled, cost.chip).peak

The times are estimates: the compiler's own of each operation, held against what HBM allows, times the loops' lengths,
and of collectives their bytes over the network's bandwidth. The same program and compiler give the same numbers, so
that commits can be compared; another libtpu gives others. Left out are latencies, what hides behind what beyond the
compiler's own marks, contention for HBM and links, kernels without an estimate (`Cost.unpriced`), the input pipeline
and the host. `python -m benchmarks.known_models` shows how far off the estimates are where others measured: of three
models in training, the predicted MFU is 20 % and 7 % below and 2 % above the published one.
"""

from idefics_jax.cost.analyze import analyze as analyze
from idefics_jax.cost.components import COMPONENTS as COMPONENTS
from idefics_jax.cost.memory import Memory as Memory
from idefics_jax.cost.memory import memory as memory
from idefics_jax.cost.reading import Collective as Collective
from idefics_jax.cost.reading import Cost as Cost
from idefics_jax.cost.reading import Operation as Operation
from idefics_jax.parallel.hardware import CHIPS as CHIPS
from idefics_jax.parallel.hardware import Chip as Chip
from idefics_jax.parallel.hardware import chip as chip
