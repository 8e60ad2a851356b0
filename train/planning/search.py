"""The rows per chip, rematerialisation and mesh that use a pod best, found by compiling one after another."""

from collections.abc import Iterator
from dataclasses import replace

from idefics_jax.cost.pods import pod_devices

from ..config import RematName, TrainConfig
from ..planning.compiling import Plan, make_plan

REMATS: tuple[RematName, ...] = ("full", ("attention",), ("query", "key", "value", "attention"), "dots")
TENSORS = (1, 2, 4, 8)


def search(config: TrainConfig) -> Iterator[Plan]:
    """Every plan that was made; the best so far is what the next ones vary.

    Each choice is made with the others as they are: first the rows per chip, doubled until they do not fit or gain
    nothing, then what is kept for the backward pass, then how many devices share a layer.
    """
    assert config.plan is not None
    devices = len(pod_devices(config.plan, config.slices))
    best: Plan | None = None

    def better(plan: Plan) -> bool:
        nonlocal best
        if best is None or mfu(plan) > mfu(best):
            best = plan
            return True
        return False

    def variant(base: TrainConfig, rows: int, tensor: int, remat: RematName) -> TrainConfig:
        pieces = devices // tensor
        return replace(
            base,
            batch_size=rows * pieces,
            accumulation=1,
            remat=remat,
            mesh=replace(base.mesh, data=config.slices, fsdp=-1, tensor=tensor),
        )

    rows, tensor, remat = 1, max(config.mesh.tensor, 1), config.remat
    while True:
        plan = make_plan(variant(config, rows, tensor, remat))
        yield plan
        if not better(plan):
            break
        rows *= 2
    if best is None or mfu(best) == 0:
        return
    rows = best.config.batch_size // (devices // tensor)
    for other in (name for name in REMATS if name != remat):
        for fewer in (rows, rows // 2):
            if fewer:
                yield (plan := make_plan(variant(config, fewer, tensor, other)))
                better(plan)
                if mfu(plan):
                    break
    remat = best.config.remat
    for other in (size for size in TENSORS if size != tensor and devices % size == 0):
        yield (plan := make_plan(variant(config, rows * other // tensor, other, remat)))
        if not better(plan):
            break


def mfu(plan: Plan) -> float:
    """Of a plan; 0 where it does not fit."""
    return 0.0 if plan.cost is None or plan.memory is None or not plan.memory.fits else plan.cost.mfu(plan.model_flops)
