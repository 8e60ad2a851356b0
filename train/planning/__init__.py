"""`python -m train … --plan POD`: what a run would do on a pod, from the TPU compiler, on a machine without one."""

import json
import sys

import jax

from idefics_jax.utils.paths import as_path
from idefics_jax.utils.progress import activity

from ..config import TrainConfig


def plan(config: TrainConfig) -> int:
    """Prints the plan, or with `plan_search` all that were tried and the best, and writes it to `OUT/plan`.

    Returns the exit status: 1 if nothing fits.

    Raises:
        ValueError: options that do not fit each other, the model or the pod; or the compiler is not installed.
        OSError: the files cannot be written.
    """
    jax.config.update("jax_platforms", "cpu")  # whatever is here, only the compiler is needed
    from ..planning.compiling import make_plan
    from ..planning.picture import to_svg
    from ..planning.report import summary, to_dict, to_markdown
    from ..planning.search import mfu, search

    plans = []
    with activity(f"Compiling for {config.plan}", visible=sys.stderr.isatty()):
        for found in search(config) if config.plan_search else map(make_plan, [config]):
            plans.append(found)
            if config.plan_search:
                print(summary(found), flush=True)
    best = max(plans, key=mfu)
    text = to_markdown(best)
    print(text)
    folder, name = as_path(config.out) / "plan", (config.plan or "").replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    if picture := to_svg(best):
        (folder / f"{name}.svg").write_text(picture)
    (folder / f"{name}.json").write_text(json.dumps(to_dict(best), indent=2) + "\n")
    return 0 if mfu(best) else 1
