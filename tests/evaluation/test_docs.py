"""What docs/evaluation.md shows: its commands, and that its figures and prompts are those of the code."""

import re
import shlex
from pathlib import Path

import pytest

from idefics_jax.cli.arguments import make_parser
from idefics_jax.evaluation.templates import DEFAULTS, TEMPLATES, make_template

DOCS = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^idefics-jax eval .*$", DOCS, re.MULTILINE)
TABLE = DOCS[DOCS.index("| `--prompt` | of |") :].split("\n\n")[0].split("|\n|---|---|---|---|\n")[1]
SHOWN_PROMPTS = re.findall(r"^\| `([a-z-]+)` \| [^|]+ \| (.*) \| (.*) \|$", TABLE, re.MULTILINE)


def test_the_commands_are_found():
    assert len(COMMANDS) == 15
    assert len({re.search(r"--out (\S+)", command)[1] for command in COMMANDS}) == len(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_something(command):
    options = make_parser().parse_args(shlex.split(command)[1:])
    name = options.prompt or DEFAULTS[options.task]
    make_template(name, "base", options.prefix, options.example, None)
    assert options.support is not None


def test_the_prompts_are_those_of_the_code():
    assert {name for name, _, _ in SHOWN_PROMPTS} == TEMPLATES.keys()
    before = None
    for name, prefix, example in SHOWN_PROMPTS:
        template = TEMPLATES[name]["base"]
        example = before if example == "the same" else example
        assert example == f"`{template.example}`".replace("\n", "⏎")
        if prefix.startswith("`"):
            assert prefix == f"`{template.prefix}`".replace("\n", "⏎")
        else:
            assert (prefix == "none") == (not template.prefix)
        before = example


def test_the_options_that_the_docs_name_are_there():
    (commands,) = make_parser()._subparsers._group_actions
    known = {option for action in commands.choices["eval"]._actions for option in action.option_strings}
    assert set(re.findall(r"`(--[a-z-]+)", DOCS)) <= known
