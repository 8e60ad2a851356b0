"""The options of `idefics-jax` and their help."""

import argparse
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from idefics_jax.cli.devices import WAITING, mesh_sizes
from idefics_jax.cli.eval_arguments import EVAL, EVAL_EXAMPLES, add_eval_options
from idefics_jax.cli.option_types import BEAMS, PENALTY, SEED, TOKENS, address, number, text, whole

DESCRIPTION = "IDEFICS: images and text in, text out."
EXAMPLES = """
examples:
  idefics-jax demo
  idefics-jax generate --image guitar.png --question "What is in this picture?"
  idefics-jax chat --model HuggingFaceM4/idefics-9b-instruct
  idefics-jax eval classification --model DIR --data pets/test --support pets/train --shots 4,16 --out runs/pets

Without --model, these four take the pocket model, which comes with the package and knows drawings of common things.
Each command has more to say with --help.
"""
DEMO = "Answers a few questions about pictures that come with the package."
GENERATE = "Answers one prompt. Standard output gets the answer and nothing else."
GENERATE_EXAMPLES = r"""
examples:
  A question, put as the instruct checkpoints were trained:
    idefics-jax generate --model DIR --image a.jpg --question "What is this?"
  Two images; each <image> in the prompt stands for one, in order:
    idefics-jax generate --model DIR --image a.jpg --image b.png --prompt "User:<image>What differs from <image>?"
  What --question makes of the first example ($'...' is how bash writes a newline):
    idefics-jax generate --model DIR --image a.jpg \
      --prompt $'User:<image>What is this?<end_of_utterance>\nAssistant:'
  The same as chat messages, of which there may be more:
    echo '[{"role": "user", "content": [{"type": "image", "path": "a.jpg"},
           {"type": "text", "text": "What is this?"}]}]' | idefics-jax generate --model DIR --messages -
  On eight devices, each with an eighth of the weights:
    idefics-jax generate --model DIR --image a.jpg --prompt "User:<image>What is this?" --mesh fsdp=2,tensor=4
  Three different answers, for a program to read:
    idefics-jax generate --model DIR --prompt "User:Hello." --temperature 0.7 --num-return-sequences 3 --json

--mesh says how devices share the model. tensor=N splits every matrix and every head's keys and values over N: the
fastest way to one answer, and the heads of the model and of its vision tower must be multiples of N. fsdp=N splits the
weights N times more and the prompts of a batch as well; data=N splits prompts alone, each part with a whole model.
One of them may be -1, whatever devices are left; those not named are 1.

On a pod, start the same command on every host, with --coordinator auto (a TPU pod's hosts find each other), or with the
address of the first host, --processes and this host's number, --process. The first host's prompt is the one that is
answered, and it alone prints.

Compiled programs are kept in the user's cache directory, or in JAX_COMPILATION_CACHE_DIR if that is set;
JAX_ENABLE_COMPILATION_CACHE=0 keeps none. IDEFICS_JAX_DEBUG=1 shows where an error came from.
"""
CHAT = "A conversation about images. Each line is a message; lines that begin with a slash are commands."
CHAT_COMMANDS = """\
/image PATH   attach an image (a file or URL) to the next message; write <image> in it to say where it goes
/reset        forget the conversation
/help         this list
/quit         leave; so do /exit, quit, exit and the end of input (Ctrl-D)
"""
CHAT_EXAMPLES = f"""
commands:
{CHAT_COMMANDS}
examples:
  idefics-jax chat --model DIR
  printf '/image cat.jpg\\nWhat is this?\\nWhat colour is it?\\n' | idefics-jax chat --model DIR
"""

STYLE: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}


#: Commands of the programs for training and conversion, which have their own parsers.
PROGRAMS = {
    "train": "Fine-tunes a model.",
    "convert": "Converts a checkpoint.",
    "inspect": "Shows what a checkpoint holds.",
    "verify": "Compares two checkpoints.",
}


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, without repeating all the options."""

    def print_help(self, file: Any = None) -> None:
        (file or sys.stdout).write(self.format_help())  # argparse's own passes over a full disk

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help.\n")


class Version(argparse.Action):
    """Prints the version, which takes a while to look up."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        try:
            found = version("idefics-jax")
        except PackageNotFoundError:
            found = "that is not installed"
        print(f"idefics-jax {found}")
        parser.exit(0)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser: `command` is "demo", "generate", "chat" or "eval", the rest is named as the options are."""
    parser = Parser(prog="idefics-jax", description=DESCRIPTION, epilog=EXAMPLES, **STYLE)
    parser.add_argument("--version", action=Version, nargs=0, help="show the version and exit")
    names = ",".join(("demo", "generate", "chat", "eval", *PROGRAMS))
    commands = parser.add_subparsers(dest="command", required=True, metavar=f"{{{names}}}")

    _add_model(commands.add_parser("demo", help=DEMO, description=DEMO, **STYLE))

    generate = commands.add_parser("generate", help=GENERATE, description=GENERATE, epilog=GENERATE_EXAMPLES, **STYLE)
    _add_model(generate)
    prompt = generate.add_argument_group("prompt")
    source = prompt.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--prompt", type=text, metavar="TEXT", help='text, with <image> where an image goes; "-" reads standard input'
    )
    source.add_argument(
        "--question", type=text, metavar="TEXT", help="a question about the images, asked as in a conversation"
    )
    source.add_argument("--messages", metavar="FILE", help='a JSON list of chat messages; "-" reads standard input')
    prompt.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="an image's file or URL; repeat it for more"
    )
    output = generate.add_argument_group("output").add_mutually_exclusive_group()
    output.add_argument("--stream", action="store_true", help="print the answer while it is made")
    output.add_argument("--json", action="store_true", help="print JSON: answers, their token ids and why they ended")
    _add_sampling(generate, max_new_tokens=100)
    _add_hosts(generate, "The same command on each; the first reads and prints.")
    plan = generate.add_argument_group("before you have a pod", "Nothing is answered, and no weight is read.")
    plan.add_argument(
        "--plan", metavar="POD", help="what a TPU pod would do with this command, by its compiler, say v5e:2x4"
    )
    plan.add_argument("--slices", type=whole(1, 1000), default=1, metavar="N", help="how many of them (default 1)")
    search = generate.add_argument_group("several answers and beam search")
    search.add_argument("--num-return-sequences", type=whole(1, 1000), metavar="N", help="answers (default 1)")
    search.add_argument("--num-beams", type=BEAMS, metavar="N", help="beams (default 1: no beam search)")
    search.add_argument("--length-penalty", type=PENALTY, metavar="X", help="above 0 favours long answers (default 1)")

    chat = commands.add_parser("chat", help=CHAT, description=CHAT, epilog=CHAT_EXAMPLES, **STYLE)
    _add_model(chat)
    _add_sampling(chat, max_new_tokens=256)

    for name, does in PROGRAMS.items():
        commands.add_parser(name, help=does, add_help=False)
    evaluate = commands.add_parser("eval", help=EVAL, description=EVAL, epilog=EVAL_EXAMPLES, **STYLE)
    add_eval_options(evaluate)
    _add_model(evaluate)
    _add_hosts(evaluate, "The same command on each, which reads its part of the images; the first writes and prints.")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="DIR", help="a checkpoint's directory, or its id on the hub (default: the pocket model)"
    )
    group.add_argument(
        "--mesh",
        type=mesh_sizes,
        metavar="AXIS=N,...",
        help="spread it over several devices, say fsdp=2,tensor=4; axes: data, fsdp, tensor (default: one device)",
    )
    group.add_argument(
        "--dtype",
        choices=("bfloat16", "float32", "float16"),
        help="of computation (default: the checkpoint's; on a CPU float32, which is faster there)",
    )
    group.add_argument(
        "--high-depth",
        choices=("clip", "scale"),
        help="16-bit and float images: white or black, as in the authors' code, or scaled to 8 bits "
        "(default: the checkpoint's, clip)",
    )


def _add_hosts(parser: argparse.ArgumentParser, what_each_does: str) -> None:
    hosts = parser.add_argument_group("several hosts", what_each_does)
    hosts.add_argument(
        "--coordinator", type=address, metavar="HOST:PORT", help='the first host\'s address; "auto" on a TPU pod'
    )
    hosts.add_argument("--processes", type=whole(1), metavar="N", help="how many there are")
    hosts.add_argument("--process", type=whole(0), metavar="N", help="which of them this is, from 0")
    add_waiting(hosts)


def add_waiting(group: Any) -> None:
    """Add the option that says how long processes wait for one another at the start."""
    group.add_argument(
        "--coordinator-timeout",
        type=whole(1, 10**6),
        default=WAITING,
        metavar="SECONDS",
        help="give up if the others have not come by then (default %(default)s)",
    )


def _add_sampling(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    group = parser.add_argument_group(
        "how tokens are chosen",
        "The likeliest one always, unless one of the next four asks for drawing. What is not given is as in the "
        "checkpoint's generation_config.json, where it has one.",
    )
    group.add_argument(
        "--temperature", type=number(0, 1e6), metavar="X", help="below 1 sharper, above 1 wilder; 0: no drawing"
    )
    group.add_argument(
        "--top-k", type=whole(0), metavar="N", help="draw from the N likeliest (default 50; 0: from all)"
    )
    group.add_argument(
        "--top-p", type=number(0, 1, above=True), metavar="P", help="draw from the likeliest that have P together"
    )
    group.add_argument(
        "--min-p", type=number(0, 1), metavar="P", help="draw from those with P times the likeliest's or more"
    )
    group.add_argument("--seed", type=SEED, default=0, metavar="N", help="the same seed draws the same (default 0)")
    group.add_argument(
        "--repetition-penalty",
        type=number(0, 1e6, above=True),
        metavar="X",
        help="above 1: repeat less (default 1)",
    )
    group.add_argument(
        "--bad-word", type=text, action="append", default=[], metavar="WORD", help="must not occur; repeat it for more"
    )
    group.add_argument(
        "--max-new-tokens",
        type=TOKENS,
        metavar="N",
        help=f"most tokens to add (default {max_new_tokens})",
    )
    group.add_argument("--min-new-tokens", type=whole(0), metavar="N", help="least tokens to add")
    group.add_argument(
        "--stop",
        type=text,
        action="append",
        default=[],
        metavar="TEXT",
        help="ends the answer, not printed; repeat it for more",
    )
