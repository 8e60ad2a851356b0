"""An answer's text, token by token: what may be printed at once, up to the first stop string."""

from collections.abc import Callable, Sequence
from typing import Any

from idefics_jax.processing.tokenizer import IdeficsTokenizer, TextStreamer


class StopStringFilter:
    """The text of an answer as its tokens come, without the spaces it begins with, and cut at a stop string.

    What `put` and `end` return is text to print; put together it is the same however the tokens fall.

    Attributes:
        stopped: whether a stop string was found.
    """

    def __init__(self, tokenizer: IdeficsTokenizer, prompt: Any, stop_strings: Sequence[str]):
        self.stopped = False
        self._streamer = TextStreamer(tokenizer, prompt)
        self._stop_strings = stop_strings
        self._held = ""  # may yet turn out to begin a stop string
        self._begun = False

    def put(self, token: int) -> str:
        """The text that is certain now that `token` is known."""
        return self._release(self._streamer.put(token))

    def end(self) -> str:
        """The rest."""
        text = self._release(self._streamer.end()) + self._held
        self._held = ""
        return text

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        if not self._begun:
            text = text.lstrip(" ")
            self._begun = bool(text)
        found = [text.index(stop) for stop in self._stop_strings if stop in text]
        self.stopped = bool(found)
        certain = min(found) if found else len(text) - self._possible_beginning(text)
        self._held = "" if found else text[certain:]
        return text[:certain]

    def _possible_beginning(self, text: str) -> int:
        """How many characters at the end of `text` could be the beginning of a stop string."""
        return max(
            (
                size
                for stop in self._stop_strings
                for size in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:size])
            ),
            default=0,
        )


class PrintStreamer:
    """A streamer for `generate` that prints the one answer it gets.

    Args:
        on_first_text: called before anything is printed.
    """

    def __init__(
        self,
        tokenizer: IdeficsTokenizer,
        stop_strings: Sequence[str],
        on_first_text: Callable[[], object],
    ):
        self._tokenizer = tokenizer
        self._stop_strings = stop_strings
        self._on_first_text = on_first_text
        self._text: StopStringFilter | None = None

    def put(self, tokens: Any) -> None:
        """The prompt `[1, seq]`, then each token `[1]`."""
        if self._text is None:
            self._text = StopStringFilter(self._tokenizer, tokens, self._stop_strings)
        else:
            self._print(self._text.put(int(tokens[0])))

    def end(self) -> None:
        """No token follows."""
        assert self._text is not None
        self._print(self._text.end() + "\n")

    def _print(self, text: str) -> None:
        if text:
            self._on_first_text()
            print(text, end="", flush=True)


class Silent:
    """A streamer that prints nothing."""

    def put(self, tokens: Any) -> None:
        """Takes tokens."""

    def end(self) -> None:
        """No token follows."""
