"""The options of `idefics-jax` and their help."""

import argparse
from importlib.metadata import version
from typing import Any, NoReturn

from idefics_jax.cli.devices import mesh_sizes
from idefics_jax.cli.eval_arguments import EVAL, EVAL_EXAMPLES, add_eval_options

DESCRIPTION = "IDEFICS: images and text in, text out."
EXAMPLES = """
examples:
  idefics-jax demo
  idefics-jax generate --image guitar.png --question "What is in this picture?"
  idefics-jax chat --model HuggingFaceM4/idefics-9b-instruct
  idefics-jax eval classification --model DIR --data pets/test --support pets/train --shots 4,16 --out runs/pets

Without --model, all of them take the pocket model, which comes with the package and knows drawings of common things.
`idefics-jax generate --help`, `idefics-jax chat --help` and `idefics-jax eval --help` say more.
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
/quit         leave; so does the end of input (Ctrl-D)
"""
CHAT_EXAMPLES = f"""
commands:
{CHAT_COMMANDS}
examples:
  idefics-jax chat --model DIR
  printf '/image cat.jpg\\nWhat is this?\\nWhat colour is it?\\n' | idefics-jax chat --model DIR
"""

STYLE: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, without repeating all the options."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help.\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser: `command` is "demo", "generate", "chat" or "eval", the rest is as the options are called."""
    parser = Parser(prog="idefics-jax", description=DESCRIPTION, epilog=EXAMPLES, **STYLE)
    parser.add_argument("--version", action="version", version=f"idefics-jax {version('idefics-jax')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{demo,generate,chat,eval}")

    _add_model(commands.add_parser("demo", help=DEMO, description=DEMO, **STYLE))

    generate = commands.add_parser("generate", help=GENERATE, description=GENERATE, epilog=GENERATE_EXAMPLES, **STYLE)
    _add_model(generate)
    prompt = generate.add_argument_group("prompt")
    text = prompt.add_mutually_exclusive_group(required=True)
    text.add_argument(
        "--prompt", metavar="TEXT", help='text, with <image> where an image goes; "-" reads standard input'
    )
    text.add_argument("--question", metavar="TEXT", help="a question about the images, asked as in a conversation")
    text.add_argument("--messages", metavar="FILE", help='a JSON list of chat messages; "-" reads standard input')
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
    plan.add_argument("--slices", type=int, default=1, metavar="N", help="how many of them (default 1)")
    search = generate.add_argument_group("several answers and beam search")
    search.add_argument("--num-return-sequences", type=int, default=1, metavar="N", help="answers (default 1)")
    search.add_argument("--num-beams", type=int, default=1, metavar="N", help="beams (default 1: no beam search)")
    search.add_argument(
        "--length-penalty", type=float, default=1.0, metavar="X", help="above 0 favours long answers (default 1)"
    )

    chat = commands.add_parser("chat", help=CHAT, description=CHAT, epilog=CHAT_EXAMPLES, **STYLE)
    _add_model(chat)
    _add_sampling(chat, max_new_tokens=256)

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
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help='the first host\'s address; "auto" on a TPU pod')
    hosts.add_argument("--processes", type=int, metavar="N", help="how many there are")
    hosts.add_argument("--process", type=int, metavar="N", help="which of them this is, from 0")


def _add_sampling(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    group = parser.add_argument_group(
        "how tokens are chosen", "The likeliest one always, unless one of the next four asks for drawing."
    )
    group.add_argument("--temperature", type=float, metavar="X", help="below 1 sharper, above 1 wilder; 0: no drawing")
    group.add_argument("--top-k", type=int, metavar="N", help="draw from the N likeliest (default 50; 0: from all)")
    group.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest that have P together")
    group.add_argument("--min-p", type=float, metavar="P", help="draw from those with P times the likeliest's or more")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed draws the same (default 0)")
    group.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: repeat less (default 1)"
    )
    group.add_argument(
        "--bad-word", action="append", default=[], metavar="WORD", help="must not occur; repeat it for more"
    )
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help="most tokens to add (default %(default)s)",
    )
    group.add_argument("--min-new-tokens", type=int, default=0, metavar="N", help="least tokens to add")
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="ends the answer, not printed; repeat it for more"
    )
