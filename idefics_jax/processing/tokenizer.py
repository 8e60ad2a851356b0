"""LLaMA's tokenizer with IDEFICS' special tokens, from the files of a checkpoint, tokenising as in the original."""

import json
import os
from collections.abc import Iterable, Sequence
from inspect import signature
from typing import Any, Self, no_type_check, overload

import numpy as np
from tokenizers import AddedToken, Tokenizer

from idefics_jax.processing.padding import INSTEAD, Padding, Side, as_tensors, check_tensors
from idefics_jax.processing.sentencepiece import LLAMA_STEPS, read_sentencepiece
from idefics_jax.utils.checks import LOADING, check_text, refuse, shown
from idefics_jax.utils.commit import committed
from idefics_jax.utils.hub import checkpoint_directory
from idefics_jax.utils.json_files import check_types, read_object
from idefics_jax.utils.paths import AnyPath, PathLike

NAMED = ("unk_token", "bos_token", "eos_token", "pad_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
FILES = ["tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
MAX_CHARACTERS = 1_000_000  # of a text: some thirty times what fills the longest published context


class IdeficsTokenizer:
    """Text to token ids and back: the `tokenizers` library with the special tokens of the checkpoint's other files.

    Picklable, and free of JAX, torch and transformers. Attributes:
        bos_token, eos_token, pad_token, unk_token: the tokens; `..._token_id` their ids.
        padding_side, truncation_side: "left" or "right", the checkpoint's.
        config: the contents of `tokenizer_config.json`, for saving.

    LLaMA's way of treating spaces changed in transformers 5, and IDEFICS was trained with the original one, called
    `legacy` there: each stretch of text between special tokens is tokenised as if a space stood before it, so that
    "Describe" after an image is `▁Describe`, and " Describe" there is `▁`, `▁Describe`. A LLaMA `tokenizer.json` of any
    version is read so, also one that transformers 5 saved in its new form; other kinds are left as they are.
    """

    def __init__(self, tokenizer: Tokenizer, config: dict[str, Any] | None = None):
        config = dict(config or {})
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self.config = config
        self.bos_token = _content(config.get("bos_token")) or "<s>"
        self.eos_token = _content(config.get("eos_token")) or "</s>"
        self.unk_token = _content(config.get("unk_token")) or "<unk>"
        self.pad_token = _content(config.get("pad_token")) or self.unk_token
        self.bos_token_id, self.eos_token_id, self.unk_token_id, self.pad_token_id = self.convert_tokens_to_ids(
            [self.bos_token, self.eos_token, self.unk_token, self.pad_token]
        )
        self.padding_side: Side = config.get("padding_side") or "left"
        self.truncation_side: Side = config.get("truncation_side") or "right"

    def __len__(self) -> int:
        """Return the number of ids, with those of added tokens."""
        return self.tokenizer.get_vocab_size()

    def __contains__(self, token: str) -> bool:
        """Return True if `token` is a token of the vocabulary or an added one."""
        return self.tokenizer.token_to_id(token) is not None

    def __repr__(self) -> str:
        special = ", ".join(self.tokenizer.get_added_tokens_decoder()[id].content for id in self.all_special_ids)
        return f"{type(self).__name__}({len(self):,} tokens; special: {special}; padding: {self.padding_side})"

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the special tokens, ascending."""
        return sorted(id for id, token in self.tokenizer.get_added_tokens_decoder().items() if token.special)

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | list[int]:
        """The id of a token, or those of several (pieces, not text).

        Raises:
            ValueError: a token that the tokenizer does not have.
        """
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        id = self.tokenizer.token_to_id(tokens)
        if id is None:
            raise ValueError(f"The tokenizer has no {tokens} token; use the checkpoint's own tokenizer.")
        return id

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or a list of those of several (pieces, not text).

        Raises:
            ValueError: an id that the tokenizer does not have.
        """
        if np.ndim(ids) == 0:
            return self._token(ids)
        special = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._token(id) for id in np.asarray(ids).tolist() if id not in special]

    def tokenize(self, text: str) -> list[str]:
        """The tokens of `text`, as `encode` makes them."""
        return self.convert_ids_to_tokens(self.encode(text))

    @no_type_check
    def encode(self, text: str) -> list[int]:
        """The ids of `text`; special tokens written in it are recognised, none are added.

        Raises:
            ValueError: it is no text, longer than `MAX_CHARACTERS`, or not valid Unicode.
        """
        return self._encode(text, add_special_tokens=False)

    @no_type_check  # wrong types have their own sentences
    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        truncation: bool | str | None = None,
        truncation_side: str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        **unknown: Any,
    ) -> dict[str, Any]:
        """`input_ids` and `attention_mask` of a text, or of each of several, as in the reference.

        Prompts for the model are made by a processor, which puts `<s>` before them; here it is added only if the
        checkpoint's `tokenizer.json` says so.

        Args:
            add_special_tokens: add what `tokenizer.json` adds around a text.
            padding, padding_side, pad_to_multiple_of: see `idefics_jax.processing.padding.Padding`.
            truncation, truncation_side, max_length: the same.
            return_tensors: "np" for arrays `[texts, tokens]`, "jax" for JAX's; default: lists.

        Raises:
            ValueError: no text, an argument that is unknown or out of range, or arrays of texts of different lengths.
        """
        refuse("The tokenizer", unknown, signature(IdeficsTokenizer.__call__).parameters, INSTEAD)
        if truncation is None:  # as in the reference, a length alone cuts
            truncation = max_length is not None and padding is False
        fill = Padding.of(
            self, padding, padding_side, pad_to_multiple_of, truncation, truncation_side, max_length, noun="texts"
        )
        check_tensors(return_tensors)
        one = isinstance(text, str)
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError("The batch is empty; give at least one text.")
        rows = [fill.cut(self._encode(each, add_special_tokens)) for each in texts]
        length = fill.length(rows)
        masks = [[1] * len(row) for row in rows]
        if length is not None:
            rows = [fill.filled(row, length, self.pad_token_id) for row in rows]
            masks = [fill.filled(mask, length, 0) for mask in masks]
        named = {"input_ids": rows, "attention_mask": masks}
        if return_tensors is None:
            return {name: values[0] for name, values in named.items()} if one else named
        if len(set(map(len, rows))) > 1:
            raise ValueError("The texts have different lengths; arrays need padding=True.")
        return as_tensors({name: np.array(values, np.int32) for name, values in named.items()}, return_tensors)

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The text of one sequence of ids (an id, a list, or an array of any library); of `[n, tokens]`, `n` texts.

        Raises:
            ValueError: something else than ids.
        """
        if isinstance(ids, str):
            raise ValueError(f"decode takes ids, not the text {shown(ids)}.")
        try:
            array = np.asarray(ids)
        except ValueError:  # sequences of several lengths
            return self.batch_decode(ids, skip_special_tokens)
        if array.ndim > 1:
            return self.batch_decode(array, skip_special_tokens)
        if array.size and (not np.issubdtype(array.dtype, np.integer) or not 0 <= array.min() <= array.max() < 2**32):
            raise ValueError(f"decode takes ids, whole numbers from 0, not {shown(ids)}.")
        return self.tokenizer.decode(array.ravel().tolist(), skip_special_tokens)

    def batch_decode(self, ids: Any, skip_special_tokens: bool = False) -> list[str]:
        """The texts of several sequences of ids, such as `[n, tokens]`; one sequence is a batch of one."""
        rows = list(ids) if np.iterable(ids) and not isinstance(ids, str) else [ids]
        if rows and np.ndim(rows[0]) == 0:
            rows = [ids]
        return [self.decode(row, skip_special_tokens) for row in rows]

    def _encode(self, text: Any, add_special_tokens: bool) -> list[int]:
        if not isinstance(text, str):
            raise ValueError(f"The text is {shown(text)}; it must be a string.")
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"The text has {len(text):,} characters; at most {MAX_CHARACTERS:,} are possible.")
        check_text(text, "The text")
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def _token(self, id: Any) -> str:
        token = self.tokenizer.id_to_token(id) if hasattr(id, "__index__") and 0 <= id < 2**32 else None
        if token is None:
            raise ValueError(f"The tokenizer has no id {shown(id)}; its ids are 0 to {len(self) - 1}.")
        return token

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: PathLike,
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **unknown: Any,
    ) -> Self:
        """From a checkpoint's directory or hub id: `tokenizer.json`, or else sentencepiece's `tokenizer.model`.

        `revision`, `cache_dir`, `token` and `local_files_only` are the hub's (`utils.hub`).
        Tokens that only `added_tokens.json`, `tokenizer_config.json` or `special_tokens_map.json` name are added.

        Raises:
            FileNotFoundError: neither file is there.
            ValueError: a file that cannot be read, or an added token whose id is not the next one.
        """
        hub = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        refuse("from_pretrained", unknown, hub, LOADING)
        directory = checkpoint_directory(path_or_id, FILES, **hub)
        config = {}
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            config |= _settings(directory / name)
        if (directory / "tokenizer.json").exists():
            content = _as_original(_tokenizer_json(directory / "tokenizer.json"))
        elif (directory / "tokenizer.model").exists():
            content = read_sentencepiece(directory / "tokenizer.model")
        else:
            raise FileNotFoundError(f"{directory} has neither tokenizer.json nor tokenizer.model.")
        try:
            tokenizer = Tokenizer.from_str(json.dumps(content))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises a bare Exception, and where it panics not even that
            raise ValueError(f"The tokenizer in {directory} cannot be used: {error}.") from error
        _add_tokens(tokenizer, _named_ids(directory, config), directory)
        return cls(tokenizer, config)

    def save_pretrained(self, directory: PathLike) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`.

        Raises:
            OSError: the directory cannot be written; what was in it is unchanged.
        """
        added = {token.content: id for id, token in sorted(self.tokenizer.get_added_tokens_decoder().items())}
        named = {"bos_token": self.bos_token, "eos_token": self.eos_token}
        named |= {"unk_token": self.unk_token, "pad_token": self.pad_token}
        others = [token for token in added if token not in named.values()]
        special = named | {"additional_special_tokens": others}
        # Without these two transformers 5 would take up its new way of treating spaces.
        config = {"tokenizer_class": "LlamaTokenizer"} | self.config | {"legacy": True} | special
        config.pop("extra_special_tokens", None)  # transformers 5's name for the others
        config |= {"padding_side": self.padding_side, "truncation_side": self.truncation_side}
        files = {
            "tokenizer.json": json.loads(self.tokenizer.to_str()),
            "tokenizer_config.json": config,
            "special_tokens_map.json": special,
            "added_tokens.json": {token: added[token] for token in others},
        }
        with committed(directory) as folder:
            for name, content in files.items():
                text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
                (folder / name).write_text(text, encoding="utf-8")


class TextStreamer:
    """Turns token ids that arrive one by one into text that can be printed at once and never has to be taken back.

    What `put` and `end` return, put together, is the text that the ids add to the `prompt`'s when all are decoded
    together: spaces between tokens are kept, and the bytes of a character, which may be several tokens, come out whole
    (if the prompt does not end inside one).

        streamer = TextStreamer(tokenizer, prompt_ids)
        for token in generated:
            print(streamer.put(token), end="", flush=True)
        print(streamer.end())
    """

    def __init__(self, tokenizer: IdeficsTokenizer, prompt: Any = (), skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids = np.asarray(prompt, dtype=np.int64).ravel().tolist()
        self._printed = tokenizer.decode(self._ids, skip_special_tokens)
        self._new = 0  # how many of the ids came after the last text
        # A run of byte pieces is decoded as a whole, and to other text if it is invalid: wait for its end, which a
        # special token that is skipped is not.
        pieces = tokenizer.tokenizer
        self._waiting = {pieces.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
        if skip_special_tokens:
            self._waiting |= {id for id, token in pieces.get_added_tokens_decoder().items() if token.special}

    def put(self, id: int) -> str:
        """The text that can be printed now that `id` is known; often its own, "" inside a character."""
        self._ids.append(int(id))
        self._new += 1
        return "" if int(id) in self._waiting else self._flush()

    def end(self) -> str:
        """The rest of the text, after the last id."""
        return self._flush()

    def _flush(self) -> str:
        text = self._tokenizer.decode(self._ids, self._skip)
        new = text[len(self._printed) :]
        if not new:
            return ""
        # The next tokens' text depends on no more than these, so a long text costs no more per token than a short one.
        self._ids = self._ids[-self._new :]
        self._printed, self._new = self._tokenizer.decode(self._ids, self._skip), 0
        return new


def _as_original(content: dict[str, Any]) -> dict[str, Any]:
    """The contents of a `tokenizer.json`, if it is LLaMA's with the steps of its original version.

    Transformers 5 saves another pre-tokenizer, which puts a space only before the first stretch of text or leaves it
    out where there is one; and a special token marked `normalized` would swallow the space that follows it.
    """
    normalizer, pre_tokenizer = content.get("normalizer") or {}, content.get("pre_tokenizer") or {}
    steps = {str(step.get("type")) for step in normalizer.get("normalizers", [normalizer]) if step}
    original = {"Prepend"} <= steps <= {"Prepend", "Replace"} and not pre_tokenizer
    newer = not steps and pre_tokenizer.get("type") == "Metaspace" and pre_tokenizer.get("prepend_scheme") != "never"
    if not (content["model"].get("byte_fallback") and (original or newer)):
        return content
    added = [
        token | {"normalized": False} if token.get("special") else token for token in content.get("added_tokens") or []
    ]
    return content | LLAMA_STEPS | {"added_tokens": added}


def _named_ids(directory: AnyPath, config: dict[str, Any]) -> dict[str, int | None]:
    """The special tokens that the other files name, in the order of their ids; None: the next free one."""
    ids = _read_json(directory / "added_tokens.json")
    check_types(ids, dict.fromkeys(ids, int), directory / "added_tokens.json")
    ids = {token: id for token, id in ids.items() if id is not None}
    ids |= {_content(token): int(id) for id, token in (config.get("added_tokens_decoder") or {}).items()}
    names = [config.get(name) for name in NAMED]
    for name in LISTS:
        tokens = config.get(name) or []
        names += tokens.values() if isinstance(tokens, dict) else tokens  # an object names each, as `image_token`
    without_id = {_content(token): None for token in names if token}
    return without_id | dict(sorted(ids.items(), key=lambda item: item[1]))


def _add_tokens(tokenizer: Tokenizer, ids: dict[str, int | None], directory: AnyPath) -> None:
    """Make each of `ids` a special token of `tokenizer`, and check that it has the id it should have."""
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token, id in sorted(ids.items(), key=lambda item: (item[1] is None, item[1] or 0)):
        if token not in present:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        actual = tokenizer.token_to_id(token)
        if id is not None and id != actual:
            raise ValueError(f"{directory} gives {token} the id {id}, but in its tokenizer it has {actual}.")


def _content(token: str | dict[str, Any] | None) -> str:
    """A special token's text: the files hold it as such or as an object; "" if there is none."""
    return (token.get("content") if isinstance(token, dict) else token) or ""


def _tokenizer_json(path: AnyPath) -> dict[str, Any]:
    """Read a `tokenizer.json` and check the parts that are looked at here."""
    content = read_object(path)
    parts = {"model": dict, "normalizer": dict, "pre_tokenizer": dict, "added_tokens": list}
    check_types(content, parts, path)
    if content.get("model") is None:
        raise ValueError(f"{path} has no model; replace the file.")
    normalizers = (content.get("normalizer") or {}).get("normalizers", [])
    tokens = content.get("added_tokens") or []
    if not isinstance(normalizers, list) or not all(isinstance(item, dict) for item in [*normalizers, *tokens]):
        raise ValueError(f"{path}: added_tokens and normalizers must be lists of objects.")
    for token in tokens:
        check_types(token, {"content": str, "special": bool, "id": int}, f"{path}, added_tokens")
    return content


def _settings(path: AnyPath) -> dict[str, Any]:
    """Read a `tokenizer_config.json` or `special_tokens_map.json`, and check the fields that are used."""
    config = _read_json(path)
    types = dict.fromkeys(NAMED, str | dict) | {"additional_special_tokens": list, "extra_special_tokens": list | dict}
    types |= {"added_tokens_decoder": dict, "padding_side": str, "truncation_side": str}
    check_types(config, types, path)
    tokens = {name: config[name] for name in NAMED if config.get(name) is not None}
    for name in LISTS:
        values = config.get(name) or []
        tokens |= {
            f"{name}.{key}": token for key, token in (values.items() if isinstance(values, dict) else enumerate(values))
        }
    for id, token in (config.get("added_tokens_decoder") or {}).items():
        if not (id.isascii() and id.isdigit()):
            raise ValueError(f"{path}: added_tokens_decoder has {shown(id)} for an id; it must be a whole number.")
        tokens[f"added_tokens_decoder.{id}"] = token
    for name, token in tokens.items():
        if not isinstance(token.get("content") if isinstance(token, dict) else token, str):
            raise ValueError(f"{path}: {name} must be a token's text or an object with its content.")
    return config


def _read_json(path: AnyPath) -> dict[str, Any]:
    """Return the object in a JSON file; {} if there is none."""
    return read_object(path) if path.exists() else {}
