"""`idefics-jax generate --plan POD`: what the command would do on a pod, from the TPU compiler, without one."""

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

from idefics_jax.config import IdeficsConfig
from idefics_jax.processing.processor import IdeficsProcessor
from idefics_jax.utils.progress import activity


def run(options: argparse.Namespace, processor: IdeficsProcessor, inputs: dict[str, Any]) -> int:
    """Prints the plan of a prompt, as Markdown or JSON; 1 if it does not fit. No weight is read.

    Raises:
        ValueError: options that do not fit each other, the model or the pod; or the compiler is not installed.
    """
    if options.mesh is None:
        raise ValueError("--plan needs --mesh, which says how the pod's devices share the model.")
    if options.num_beams > 1:
        raise ValueError("--plan does not know beam search; leave out --num-beams.")
    import jax

    jax.config.update("jax_platforms", "cpu")  # whatever is here, only the compiler is needed
    from idefics_jax.checkpoints.pretrained import compute_dtype
    from idefics_jax.cli.loading import choosing
    from idefics_jax.planning.generation import plan_generation

    config = IdeficsConfig.from_pretrained(options.model)
    config = replace(config, dtype=compute_dtype(config.dtype, options.dtype))
    rules = choosing(options, processor)
    names = ("max_new_tokens", "do_sample", "bad_words_ids", "stop_strings", "tokenizer")
    with activity(f"Compiling for {options.plan}", visible=sys.stderr.isatty()):
        plan = plan_generation(
            config,
            inputs,
            topology=options.plan,
            slices=options.slices,
            mesh=options.mesh,
            num_return_sequences=options.num_return_sequences,
            **{name: rules[name] for name in names},
        )
    print(json.dumps(to_dict(plan)) if options.json else to_markdown(plan))
    return 0 if plan.fits else 1


def to_dict(plan: Any) -> dict[str, Any]:
    """Numbers by name; seconds, bytes, and shares of 1."""
    found: dict[str, Any] = {
        "topology": plan.topology,
        "slices": plan.slices,
        "devices": plan.devices,
        "mesh": plan.mesh,
        "answers": plan.answers,
        "prompt_tokens": plan.tokens,
        "images": plan.images,
        "cache_slots": plan.slots,
        "fits": plan.fits,
        "programs": [_program(program) for program in plan.programs],
    }
    if plan.fits:
        found |= {
            "prefill_seconds": plan.reading_seconds,
            "prefill_mfu": plan.reading_mfu,
            "decode_step_seconds": plan.decoding.seconds,
            "tokens_per_second": plan.answers / plan.decoding.seconds,
            "decode_step_bytes": plan.decoding.compiled.cost.hbm_bytes,
            "decode_step_needed_bytes": plan.step_bytes,
        }
    return found


def _program(program: Any) -> dict[str, Any]:
    memory, cost, reason = program.compiled.memory, program.compiled.cost, program.compiled.reason
    found = {"name": program.name, "runs": program.runs, "compile_seconds": program.compiled.seconds, "reason": reason}
    if memory is None or cost is None:
        return found
    return found | {
        "hbm_bytes": memory.total + program.beside,
        "seconds": cost.step_seconds,
        "seconds_by_component": cost.by_component,
        "collectives": [each._asdict() for each in cost.collectives],
        "unpriced": cost.unpriced,
    }


def to_markdown(plan: Any) -> str:
    """A table of what matters, the programs' memory, the collectives, and what the numbers leave out."""
    from idefics_jax.cost import words

    slices = f"{plan.slices} x " if plan.slices > 1 else ""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    compiling = sum(program.compiled.seconds for program in plan.programs)
    lines = [
        f"# {slices}{plan.topology}: {plan.devices} devices",
        "",
        f"{plan.answers:,} answer{'s' * (plan.answers > 1)} to prompts of up to {plan.tokens:,} tokens, with "
        f"{plan.images:,} image{'s' * (plan.images != 1)} in all; caches of {plan.slots:,} tokens; mesh {mesh}; "
        f"compiled in {compiling:.0f} s.",
        "",
    ]
    lacking = [f"**{each.name} does not fit.** {each.compiled.reason}" for each in plan.programs if each.seconds == 0]
    if lacking:
        return "\n".join([*lines, *lacking, ""])
    decoding, cost = plan.decoding, plan.decoding.compiled.cost
    rows = {
        "fits": words.fits_in_words(min(program.free for program in plan.programs)),
        "prompts read in": f"{plan.reading_seconds * 1e3:,.1f} ms, MFU {plan.reading_mfu:.1%}",
        "a token of each answer in": f"{decoding.seconds * 1e3:,.2f} ms",
        "tokens": f"{plan.answers / decoding.seconds:,.0f} per second",
        "HBM for a token": f"{cost.hbm_bytes / 1e9:.2f} GB on each device, {plan.traffic:.2f} times what it needs",
    }
    lines += [*words.numbers(rows), ""]
    for program in plan.programs:
        found = program.compiled
        memory = words.memory_in_words(found.memory, "weights, caches and inputs", program.beside)
        lines += [f"## {program.name}", "", f"{_runs(program)} of {program.seconds * 1e3:,.2f} ms; {memory}.", ""]
        lines += [*words.components(found.cost, digits=5), ""]
        if found.cost.collectives:
            lines += [*words.collectives(found.cost.collectives), ""]
        lines += [line for line in words.without_estimate(found.cost) if line]
    return "\n".join([*lines, words.LEFT_OUT, ""])


def _runs(program: Any) -> str:
    times = f"{program.runs:,} run{'s' * (program.runs != 1)}"
    return f"{program.runs:,} steps at most" if program.name == "decode" else times
