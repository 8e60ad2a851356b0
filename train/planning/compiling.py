"""The very step that a run would make, compiled for a pod on any machine, and what the compiler says of it."""

import math
import os
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from idefics_jax import IdeficsConfig, IdeficsImageProcessor
from idefics_jax.compiler import TRAINING
from idefics_jax.cost import Cost, Memory, analyze, chip, memory
from idefics_jax.cost.kernels import kernel_flops
from idefics_jax.sharding import on_mesh, shapes_on
from train.batches import make_layout
from train.config import TrainConfig
from train.flops import run_flops
from train.optimizer import make_optimizer
from train.starting import abstract, mesh_of, model_config
from train.step import Batch, Objective, init_state, make_train_step


class Plan(NamedTuple):
    """What the compiler says of a run's step.

    Attributes:
        config: of the run.
        devices: of the pod.
        model_flops: what one device has to compute in a step, without what is computed twice.
        compile_seconds: here.
        memory, cost: None where the program does not fit.
        reason: the compiler's, why it does not; None where it does.
    """

    config: TrainConfig
    devices: int
    model_flops: float
    compile_seconds: float
    memory: Memory | None
    cost: Cost | None
    reason: str | None


def pod_devices(topology: str, slices: int) -> list[Any]:
    """The devices of a pod as the TPU compiler knows it, such as "v5e:16x16"; `slices` of them.

    Raises:
        ValueError: the compiler is not installed, or knows no such pod.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU whose metadata could be asked for
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nor one that another process could be using
    # Never kept: JAX could not read programs for absent devices back.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    try:
        options = {"num_slices": slices} if slices > 1 else {}
        return list(topologies.get_topology_desc(topology, platform="tpu", **options).devices)
    except Exception as error:  # JAX raises several kinds
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--plan {topology}: the TPU compiler does not take it ({reason}). It comes with `pip install .[tpu]`, and "
            "names are like v5e:16x16, v5p:4x4x4 or v6e:8x8."
        ) from error


def make_plan(config: TrainConfig) -> Plan:
    """Compiles the step for `config.plan`; nothing is read, and no array is made.

    Raises:
        ValueError: options that do not fit each other, the model or the pod.
    """
    assert config.plan is not None
    which, devices = chip(config.plan), pod_devices(config.plan, config.slices)
    model = model_config(config)
    start = time.monotonic()
    lowered, paths = lower(config, model, mesh_of(config, devices))
    plan = Plan(config, len(devices), run_flops(config, model, paths) / len(devices), 0.0, None, None, None)
    try:
        compiled = lowered.compile(compiler_options=TRAINING[which.name])
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return plan._replace(compile_seconds=time.monotonic() - start, reason=too_large(str(error)))
    return plan._replace(
        compile_seconds=time.monotonic() - start,
        memory=memory(compiled, which),
        cost=analyze(compiled.as_text() or "", which, len(devices) // config.slices, kernel_flops=kernel_flops),
    )


def lower(config: TrainConfig, model: IdeficsConfig, mesh: Mesh | None) -> tuple[jax.stages.Lowered, tuple[str, ...]]:
    """The step of a run with this configuration, ready to be compiled for the mesh's devices; its weights' paths."""
    template, params, frozen = abstract(config, model, mesh)
    optimizer = make_optimizer(config.optimizer, config.steps)
    # The pixels' mean and the image token's number change nothing here.
    objective = Objective(template, config, IdeficsImageProcessor(), model.vocab_size)
    state = shapes_on(mesh, lambda params: init_state(params, optimizer, config.ema is not None), params)
    step = jax.jit(make_train_step(objective, optimizer), donate_argnums=0)
    with on_mesh(None if mesh is None else mesh.abstract_mesh):
        return step.lower(state, frozen, batch_shapes(config, model, mesh)), template.paths


def batch_shapes(config: TrainConfig, model: IdeficsConfig, mesh: Mesh | None) -> Batch:
    """A batch's shapes, as `train.batches` lays it out."""
    layout = make_layout(config, mesh)
    rows, data = (layout.accumulation, layout.rows), config.data
    tokens, images, size = data.sequence_length, data.max_images, model.vision_config.image_size

    def array(*shape: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((*rows, *shape), dtype, sharding=layout.sharding)

    return Batch(
        input_ids=array(tokens),
        labels=array(tokens),
        segment_ids=array(tokens),
        position_ids=array(tokens),
        image_attention_mask=array(tokens, images, dtype=jnp.int8),
        pixel_values=array(images, size, size, 3, dtype=jnp.uint8),
    )


def too_large(message: str) -> str:
    """The compiler's complaint in plain words: how much the program needs of how much there is."""
    line = next((line for line in message.splitlines() if "Used" in line or "exceeded" in line.lower()), message)
    return " ".join(line.split())[:300]
