"""How a run asks and scores."""

from typing import NamedTuple

from idefics_jax.evaluation.templates import Template

ZERO_SHOT = ("text-only", "none")
SELECT = ("random", "rices")
TEXT_ONLY_SHOTS = 2  # of the authors' "0-shot"


class EvalConfig(NamedTuple):
    """Every choice that an answer depends on, apart from the model and the data.

    Attributes:
        task: "vqa", "captions", "classification" or "jsonl".
        template: of the prompts.
        names: what the prompt calls a class, where that is not its own name.
        zero_shot: "text-only", two examples without their images, or "none".
        select: "random" or "rices".
        seed: of the random choices.
        batch_size: prompts that are answered together.
        max_prompt: most tokens of a prompt; more are cut at the left.
        num_beams, max_new_tokens, length_penalty, early_stopping: of the free answers, as `generate` has them.
        bad_words: texts whose tokens a free answer does not hold.
        mean: score a candidate by its mean log-probability per token, not their sum.
    """

    task: str
    template: Template
    names: dict[str, str]
    zero_shot: str
    select: str
    seed: int
    batch_size: int
    max_prompt: int
    num_beams: int
    max_new_tokens: int
    length_penalty: float
    early_stopping: bool
    bad_words: tuple[str, ...]
    mean: bool
