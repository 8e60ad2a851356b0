"""What `--plan` found, for people (Markdown) and for programs (JSON)."""

from typing import Any

from idefics_jax.cost import words
from idefics_jax.parallel.hardware import GIB

from ..config import RematName
from ..planning.compiling import Plan


def to_dict(plan: Plan) -> dict[str, Any]:
    """Numbers by name; seconds, bytes, and shares of 1."""
    config = plan.config
    found: dict[str, Any] = {
        "topology": config.plan,
        "slices": config.slices,
        "devices": plan.devices,
        "trainable": config.trainable,
        "mesh": {"data": config.mesh.data, "fsdp": config.mesh.fsdp, "tensor": config.mesh.tensor},
        "batch_size": config.batch_size,
        "accumulation": config.accumulation,
        "remat": config.remat,
        "compile_seconds": plan.compile_seconds,
        "fits": plan.memory is not None and plan.memory.fits,
        "reason": plan.reason,
    }
    if plan.memory is None or plan.cost is None:
        return found
    memory, cost = plan.memory, plan.cost
    tokens = config.batch_size * config.data.tokens
    return found | {
        "hbm_bytes": {
            "chip": memory.chip.hbm_bytes,
            "arguments": memory.arguments,
            "temporaries": memory.temporaries,
            "total": memory.total,
        },
        "step_seconds": cost.step_seconds,
        "mfu": cost.mfu(plan.model_flops),
        "tokens_per_second": tokens / cost.step_seconds,
        "collective_seconds": cost.collective_seconds,
        "exposed_collective_seconds": cost.exposed_seconds,
        "bound": cost.bound,
        "seconds_by_component": cost.by_component,
        "seconds_by_category": cost.by_category,
        "collectives": [each._asdict() for each in cost.collectives],
        "unpriced": cost.unpriced,
        "unknown_loops": cost.unknown_loops,
    }


def to_markdown(plan: Plan) -> str:
    """A table of what matters, the parts of the step, and what the numbers leave out."""
    config, found = plan.config, to_dict(plan)
    slices = f"{config.slices} x " if config.slices > 1 else ""
    lines = [
        f"# {slices}{config.plan}: {plan.devices} devices",
        "",
        f"`{config.trainable}`, {config.batch_size:,} rows of {config.data.tokens:,} tokens and "
        f"{config.data.max_images} images in {config.accumulation} part{'s' * (config.accumulation > 1)}, "
        f"{remat_in_words(config.remat)}; mesh {_mesh(config.mesh, plan.devices)}; "
        f"compiled in {plan.compile_seconds:.0f} s.",
        "",
    ]
    if plan.memory is None or plan.cost is None:
        return "\n".join([*lines, f"**It does not fit.** {plan.reason}", ""])
    memory, cost = plan.memory, plan.cost
    rows = {
        "fits": words.fits_in_words(memory.free),
        "memory of a chip": words.memory_in_words(memory, "weights, optimizer state and batch"),
        "step": f"{cost.step_seconds:.3f} s",
        "MFU": f"{found['mfu']:.1%}",
        "tokens": f"{found['tokens_per_second']:,.0f} per second, "
        f"{found['tokens_per_second'] / plan.devices:,.0f} per chip",
        "collectives": f"{cost.collective_seconds:.3f} s, of which {cost.exposed_seconds:.3f} s are not hidden",
        "bound by": cost.bound,
    }
    lines += [*words.numbers(rows), "", *words.components(cost), "", *words.collectives(cost.collectives)]
    return "\n".join([*lines, *words.without_estimate(cost), "", words.LEFT_OUT, ""])


def remat_in_words(remat: RematName) -> str:
    """What the backward pass computes again, or what it does not."""
    return f"remat {remat}" if isinstance(remat, str) else f"kept {', '.join(remat)}"


def summary(plan: Plan) -> str:
    """One line: what was tried, and how it went."""
    config = plan.config
    tried = f"mesh {_mesh(config.mesh, plan.devices)}, {config.batch_size:,} rows, {remat_in_words(config.remat)}"
    if plan.memory is None or plan.cost is None or not plan.memory.fits:
        return f"{tried}: does not fit"
    return f"{tried}: MFU {plan.cost.mfu(plan.model_flops):.1%}, {plan.memory.total / GIB:.2f} GiB"


def _mesh(mesh: Any, devices: int) -> str:
    sizes = {"data": mesh.data, "fsdp": mesh.fsdp, "tensor": mesh.tensor}
    known = 1
    for size in sizes.values():
        known *= max(size, 1)
    return " x ".join(f"{name} {devices // known if size == -1 else size}" for name, size in sizes.items())
