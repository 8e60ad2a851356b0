"""`idefics-jax chat`: a conversation about images in a terminal, or from a pipe."""

import argparse
import contextlib
import glob
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from idefics_jax.cli.answer import PrintStreamer
from idefics_jax.cli.arguments import CHAT_COMMANDS
from idefics_jax.cli.errors import describe
from idefics_jax.cli.loading import check_settings, choosing, fill_in, load_model, load_processor, note
from idefics_jax.cli.process import interruptible
from idefics_jax.cli.standard_input import read_lines
from idefics_jax.generation.context import ConversationCache, least_request
from idefics_jax.processing.chat import message_parts
from idefics_jax.processing.images import image_source, short_name
from idefics_jax.processing.prompts import Text
from idefics_jax.utils.console import DEBUG
from idefics_jax.utils.progress import activity

QUIT = ("/quit", "/exit", "quit", "exit")
COMMANDS = ("/image ", "/reset", "/help", "/quit", "/exit")


class Conversation:
    """What was said so far, as the model has it: no turn and no image is read twice.

    Raises:
        ValueError: the checkpoint is not an instruct one.
    """

    def __init__(self, options: argparse.Namespace):
        self.processor = load_processor(options.model, options.high_depth)
        if not self.processor.end_of_utterance:
            raise ValueError(f"{options.model} was not trained to converse; chat needs an instruct checkpoint.")
        fill_in(options)
        check_settings(options)
        self.model = load_model(options.model, options.dtype, options.mesh, least_request)
        self.rules = choosing(options, self.processor)
        self.images: list[Image.Image] = []  # for the next message
        self.context: ConversationCache | None = None

    def reset(self) -> None:
        """Forgets everything."""
        self.images, self.context = [], None

    def attach(self, path: str) -> None:
        """Reads an image for the next message."""
        source = image_source(os.path.expanduser(path))
        image = self.processor.image_processor.load(source)
        self.images.append(image)
        note(f"{short_name(source)}: {image.width} x {image.height} pixels, for the next message.")

    def ask(self, text: str) -> None:
        """Prints the answer to a message. Where that fails, the conversation is as before."""
        inputs = self.turn(text)
        with activity("Reading", visible=sys.stderr.isatty()) as stop_activity:
            output = self.model.generate(
                **inputs,
                **self.rules,
                cache=self.context,
                streamer=PrintStreamer(self.processor.tokenizer, self.rules["stop_strings"], stop_activity),
                return_dict_in_generate=True,
            )
        self.images, self.context = [], output.cache

    def turn(self, text: str) -> dict[str, np.ndarray]:
        """The model's inputs for a message and its images: with what ends the last answer, without what was read."""
        message = {"role": "user", "content": message_parts(text, self.images)}
        prompt: Any = self.processor.apply_chat_template([message], add_generation_prompt=True)
        if self.context is None:
            return self.processor([prompt])
        (end,) = self.processor.tokenizer.convert_tokens_to_ids([self.processor.end_of_utterance])
        ended = self.context.conversations[0][-1] == end
        prompt[0] = Text(("" if ended else self.processor.end_of_utterance) + "\n" + prompt[0])
        inputs = self.processor([prompt])
        # The first token begins a text, and this is in the middle of one. What follows is tokenised as it would be
        # there, since a special token precedes it in either place.
        return {name: array if name == "pixel_values" else array[:, 1:] for name, array in inputs.items()}


def run(options: argparse.Namespace) -> int:
    """Answers until the input ends. A mistake in a message is told, and the conversation goes on.

    Returns:
        1 if there was a mistake and no one at a terminal to see it, else 0.
    """
    conversation = Conversation(options)
    interactive = sys.stdin.isatty()
    if interactive:
        note("Type a message; /help lists the commands.")
    failed = False
    for line in _lines(interactive):
        try:
            if isinstance(line, ValueError):
                raise line
            command, _, argument = line.partition(" ")
            if line in QUIT:
                break
            if command == "/help":
                note(CHAT_COMMANDS.rstrip())
            elif command == "/reset":
                conversation.reset()
            elif command == "/image":
                conversation.attach(argument.strip().strip("'\""))
            elif command.startswith("/"):
                raise ValueError(f"There is no command {command}; /help lists them.")
            elif line:
                conversation.ask(line)
        except BrokenPipeError:
            raise
        except Exception as error:  # of one message; the conversation goes on
            if os.environ.get(DEBUG):
                traceback.print_exception(error)
            note(f"idefics-jax: {describe(error)}")
            failed = True
        except KeyboardInterrupt:
            if not interactive:
                raise
            note("\nInterrupted; the message and its answer are forgotten.")
    return int(failed and not interactive)


def _lines(interactive: bool) -> Iterator[str | ValueError]:
    """The lines of the input, with editing and a history where someone types them."""
    if not interactive:
        yield from read_lines()
        return
    interruptible()
    with contextlib.suppress(ImportError):  # Windows has its own
        import readline  # gives input() its editing

        readline.set_completer(complete)
        readline.set_completer_delims("")
        readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
    while True:
        try:
            line = input("> " if sys.stdout.isatty() else "").strip()
            yield ValueError("The line is not UTF-8 text.") if any("\ud800" <= c <= "\udfff" for c in line) else line
        except EOFError:
            note("")
            return
        except KeyboardInterrupt:  # at the prompt: drops what was typed, as in a shell
            note("")


def complete(line: str, number: int) -> str | None:
    """Return the `number`-th way to complete a line: a command, or a path after /image; None if there is none."""
    command, space, path = line.partition(" ")
    if not space:
        found = [name for name in COMMANDS if name.startswith(line)] if line.startswith("/") else []
    elif command == "/image":
        pattern = glob.escape(os.path.expanduser(path)) + "*"
        found = [f"{command} {name}{os.sep * os.path.isdir(name)}" for name in sorted(glob.glob(pattern))]
    else:
        found = []
    return found[number] if number < len(found) else None
