"""Options of conversion's commands, and the function that each runs."""

import argparse
from collections.abc import Sequence
from typing import Any

from idefics_jax.cli import STDOUT_CLOSED, guarded
from idefics_jax.cli.arguments import STYLE, Parser, add_waiting
from idefics_jax.cli.option_types import address, size, text, whole
from idefics_jax.utils.console import closed_streams

PROGRAM = "python -m conversion"
DESCRIPTION = "IDEFICS checkpoints: from any format to any, in bounded memory, with proof that nothing changed."
EXAMPLES = """
examples:
  python -m conversion convert HuggingFaceM4/idefics-9b-instruct idefics-9b-instruct-orbax
  python -m conversion inspect idefics-9b-instruct-orbax
  python -m conversion verify HuggingFaceM4/idefics-9b-instruct idefics-9b-instruct-orbax

`python -m conversion convert --help` and so on say more. IDEFICS_JAX_DEBUG=1 shows where an error came from.
"""
CONVERT = "Converts a checkpoint. The source is only read; the output appears, complete, when all of it is written."
CONVERT_EXAMPLES = """
SOURCE and OUT are directories, or gs:// or s3:// URLs (install the gcs or s3 extra); SOURCE can be a hub id as well.
A source holds safetensors, pytorch_model*.bin (read without PyTorch; no code in it is run) or what this program writes.

While it runs, the output is OUT.partial beside OUT (in an object store: OUT itself, without config.json, so that
nothing loads it). A run that was stopped, by whatever, goes on with --resume: what it had finished is checked and kept.

examples:
  For training and serving with idefics-jax, restored by Orbax onto any mesh:
    python -m conversion convert idefics-9b idefics-9b-orbax
  Back, for transformers:
    python -m conversion convert fine-tuned-orbax fine-tuned-hf --to safetensors
  Half the size, and a look at what it would do first:
    python -m conversion convert in out --dtype bfloat16 --dry-run
  Two hosts with one disk or bucket, each reading and writing its half (process 1 likewise with --process-id 1):
    python -m conversion convert gs://bucket/in gs://bucket/out \\
      --coordinator 10.0.0.2:8476 --num-processes 2 --process-id 0
"""
INSPECT = "Shows what a checkpoint holds, from the headers of its files alone."
INSPECT_EXAMPLES = """
examples:
  python -m conversion inspect idefics-80b
  python -m conversion inspect idefics-80b --tensors | grep perceiver
"""
VERIFY = "Compares two checkpoints of any formats tensor by tensor, or one with the checksums in its manifest."
VERIFY_EXAMPLES = """
Status 0: every tensor is the same bit for bit (or, where the dtypes differ, once rounded to the coarser one).
Status 1: something differs, or could not be read; standard output says what.

examples:
  python -m conversion verify idefics-9b idefics-9b-orbax
  python -m conversion verify idefics-9b-orbax
  python -m conversion verify idefics-9b idefics-9b-orbax --logits examples/cat.jpg
"""


def make_parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    """Return the parser: `command` is "convert", "inspect" or "verify", the rest is named as the options are."""

    def texts(description: str, examples: str) -> dict[str, Any]:
        return {"description": description, "epilog": examples.replace(PROGRAM, program), **STYLE}

    parser = Parser(prog=program, **texts(DESCRIPTION, EXAMPLES))
    commands = parser.add_subparsers(dest="command", required=True, metavar="{convert,inspect,verify}")

    convert = commands.add_parser("convert", help=CONVERT, **texts(CONVERT, CONVERT_EXAMPLES))
    convert.add_argument("source", metavar="SOURCE", help="a checkpoint: a directory, a URL or a hub id")
    convert.add_argument("out", metavar="OUT", help="the directory or URL to make")
    convert.add_argument(
        "--to",
        choices=("orbax", "safetensors"),
        default="orbax",
        help="orbax (default): for idefics-jax; safetensors: Hugging Face's files, for transformers",
    )
    convert.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="of the output (default: each tensor's own)"
    )
    convert.add_argument(
        "--max-shard-size",
        type=size,
        default=size("5GB"),
        metavar="SIZE",
        help="of a safetensors file, such as 500MB (default 5GB)",
    )
    convert.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    convert.add_argument("--force", action="store_true", help="replace OUT, and what a stopped run left")
    convert.add_argument(
        "--check-finite",
        action="store_true",
        help="refuse to finish if NaN or infinity is in the output, such as what is too large for float16",
    )
    convert.add_argument("--dry-run", action="store_true", help="say what would be done, and how much memory it takes")
    several = convert.add_argument_group("several processes", "Started alike on each host; what OUT is on is shared.")
    several.add_argument("--coordinator", type=address, metavar="HOST:PORT", help="an address of process 0's")
    several.add_argument("--num-processes", type=whole(1), metavar="N")
    several.add_argument("--process-id", type=whole(0), metavar="I", help="0 to N - 1")
    add_waiting(several)

    inspect = commands.add_parser("inspect", help=INSPECT, **texts(INSPECT, INSPECT_EXAMPLES))
    inspect.add_argument("path", metavar="PATH", help="a checkpoint: a directory, a URL or a hub id")
    inspect.add_argument("--tensors", action="store_true", help="a line for each tensor")

    verify = commands.add_parser("verify", help=VERIFY, **texts(VERIFY, VERIFY_EXAMPLES))
    verify.add_argument("a", metavar="A", help="a checkpoint: a directory, a URL or a hub id")
    verify.add_argument("b", metavar="B", nargs="?", help="another; without it A is checked against its own manifest")
    verify.add_argument("--check-finite", action="store_true", help="report NaN and infinity as well")
    verify.add_argument(
        "--logits",
        metavar="IMAGE",
        help="also run both on a prompt with this image, in float32, and compare logits and greedy tokens; Hugging "
        "Face checkpoints run in PyTorch where transformers is installed (needs memory for one whole model)",
    )
    verify.add_argument(
        "--prompt", type=text, default="User:<image>What is in this picture?", metavar="TEXT", help="for --logits"
    )
    return parser


def main(arguments: Sequence[str], program: str = PROGRAM) -> int:
    """Run a command and return its exit status; an error is one sentence on standard error and status 1.

    Args:
        program: name that --help and errors say.
    """
    name = program.removeprefix("python -m ")
    return guarded(name, lambda: run(make_parser(program).parse_args(arguments)))


def run(options: argparse.Namespace) -> int:
    """Run the command; JAX is imported only now, so that `--help` is instant."""
    if 1 in closed_streams and (options.command != "convert" or options.dry_run):
        raise ValueError(STDOUT_CLOSED)
    if options.command == "convert":
        from .convert import convert

        return convert(options)
    if options.command == "inspect":
        from .summary import show

        return show(options)
    from .verify import verify

    return verify(options)
