"""The very step that a run would make, compiled for a pod on any machine, and what the compiler says of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from idefics_jax import IdeficsConfig, IdeficsImageProcessor, IdeficsProcessor
from idefics_jax.cost import Cost, Memory, chip
from idefics_jax.cost.pods import compiled, pod_devices
from idefics_jax.parallel.hardware import options
from idefics_jax.parallel.mesh import on_mesh, shapes_on

from ..batches import make_layout
from ..config import TrainConfig
from ..flops import run_flops
from ..kept import save
from ..optimizer import make_optimizer
from ..starting import abstract, mesh_of, model_config
from ..step import Batch, Objective, init_state, make_train_step


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


def make_plan(config: TrainConfig) -> Plan:
    """Compiles the step for `config.plan`; nothing is read, and no array is made.

    Raises:
        ValueError: options that do not fit each other, the model or the pod.
    """
    assert config.plan is not None
    which, devices = chip(config.plan), pod_devices(config.plan, config.slices)
    model = model_config(config)
    processor = None
    if config.compiled is not None:
        if len(devices) == 1:
            raise ValueError("--compiled keeps steps of several chips; one chip compiles its own: leave it out.")
        if config.model is None:
            raise ValueError("--compiled needs --model: its image token and its pixels' mean are part of the program.")
        processor = IdeficsProcessor.from_pretrained(config.model)
    lowered, paths = lower(config, model, mesh_of(config, devices), processor)
    tokens = config.tokens_at_a_time(len(devices))
    found = compiled(lowered, which, len(devices) // config.slices, options(which.name, tokens))
    if config.compiled is not None and found.program is not None:
        save(config.compiled, lowered, found.program)
    model_flops = run_flops(config, model, paths) / len(devices)
    return Plan(config, len(devices), model_flops, found.seconds, found.memory, found.cost, found.reason)


def lower(
    config: TrainConfig, model: IdeficsConfig, mesh: Mesh | None, processor: IdeficsProcessor | None = None
) -> tuple[jax.stages.Lowered, tuple[str, ...]]:
    """The step of a run with this configuration, ready to be compiled for the mesh's devices; its weights' paths.

    The processor's image token and pixels' mean are constants of the program, which change nothing of what it costs.
    """
    template, params, frozen = abstract(config, model, mesh)
    optimizer = make_optimizer(config.optimizer, config.steps)
    images, token = IdeficsImageProcessor(), model.vocab_size
    if processor is not None:
        images, token = processor.image_processor, processor.image_token_id
    objective = Objective(template, config, images, token)
    state = shapes_on(mesh, lambda params: init_state(params, optimizer, config.ema is not None), params)
    step = jax.jit(make_train_step(objective, optimizer), donate_argnums=0)
    with on_mesh(mesh):
        return step.lower(state, frozen, batch_shapes(config, model, mesh)), template.paths


def batch_shapes(config: TrainConfig, model: IdeficsConfig, mesh: Mesh | None) -> Batch:
    """A batch's shapes, as `train.batches` lays it out."""
    layout = make_layout(config, mesh)
    rows, data = (layout.accumulation, layout.rows), config.data
    tokens, images, size = data.tokens, data.max_images, model.vision_config.image_size

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
