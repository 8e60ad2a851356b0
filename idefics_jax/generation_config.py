"""Settings of `generate`: their ranges, their defaults, and the file `generation_config.json`."""

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, cast, no_type_check

import numpy as np

from idefics_jax.config import IdeficsConfig
from idefics_jax.utils.checks import LARGEST, Range, check_text, number, refuse, shown, whole
from idefics_jax.utils.paths import AnyPath

FILE = "generation_config.json"
STOP_BYTES = 2_000  # of all stop strings: the table of their states has a row of the whole vocabulary for each
BAD_WORDS = 4_096

#: Values of settings that neither the caller nor the checkpoint gives, as in the reference.
DEFAULTS: dict[str, Any] = {
    "min_new_tokens": 0,
    "min_length": 0,
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "num_return_sequences": 1,
    "bad_words_ids": (),
    "suppress_tokens": (),
    "stop_strings": (),
    "return_dict_in_generate": False,
    "use_cache": True,
}


# Above 0, and far enough from it that float32 scores divided by it stay finite.
_POSITIVE = (1e-30, 1e30)
RANGES: dict[str, Range] = {
    "max_new_tokens": whole(1),
    "max_length": whole(1),
    "min_new_tokens": whole(0),
    "min_length": whole(0),
    "temperature": Range(float, *_POSITIVE, "above 0 (do_sample=False is greedy)"),
    "top_k": Range(int, 0, LARGEST, "a whole number, 0 or more"),
    "top_p": Range(float, 1e-30, 1, "above 0 and at most 1"),
    "min_p": Range(float, 0, 1, "between 0 and 1"),
    "repetition_penalty": Range(float, *_POSITIVE, "above 0"),
    "no_repeat_ngram_size": whole(0),
    "num_beams": whole(1, 256),
    "length_penalty": Range(float, -10, 10, "between -10 and 10"),
    "num_return_sequences": whole(1, 4_096),
    "seed": whole(0, 2**32 - 1),
}
BOOLS = ("do_sample", "return_dict_in_generate", "use_cache")
# Settings without effect unless tokens are drawn, or beams searched.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_BEAMS = ("length_penalty", "early_stopping")

# Settings of transformers' that change tokens and are not implemented, with the values that are no change.
_NOT_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "assistant_early_exit": (),
    "begin_suppress_tokens": ([], ()),
    "constraints": (),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "max_time": (),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "sequence_bias": (),
    "token_healing": (False,),
    "watermarking_config": (),
}
_NOT_IMPLEMENTED_SAMPLING: dict[str, tuple[Any, ...]] = {
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
    "typical_p": (1,),
}
# Settings of transformers' that change no token: how it stores, compiles and speculates.
_WITHOUT_EFFECT = {
    "assistant_confidence_threshold",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "is_assistant",
    "low_memory",
    "max_cache_len",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "speculation_type",
    "synced_gpus",
    "target_lookbehind",
    "use_mtp",
}
_OF_THE_FILE = {"_commit_hash", "_from_model_config", "transformers_version"}
# Arguments of transformers' `generate` alone.
_INSTEAD = {
    "assistant_model": "speculative decoding is not implemented; leave it out",
    "custom_generate": "no code of a checkpoint is ever run; leave it out",
    "inputs": "pass input_ids=",
    "logits_processor": "use repetition_penalty, no_repeat_ngram_size, bad_words_ids or suppress_tokens",
    "negative_prompt_attention_mask": "guidance is not implemented; leave it out",
    "negative_prompt_ids": "guidance is not implemented; leave it out",
    "output_attentions": "call model.model(..., output_attentions=True) on the answer",
    "output_hidden_states": "call model.model(..., output_hidden_states=True) on the answer",
    "output_logits": "call model(...) on the answer, whose output has logits",
    "output_scores": "call model(...) on the answer, whose output has logits",
    "past_key_values": "pass cache=output.cache of the turn before, and the next turn alone",
    "position_ids": "positions are counted from attention_mask; leave it out",
    "prefix_allowed_tokens_fn": "use suppress_tokens or bad_words_ids",
    "stopping_criteria": "use stop_strings, eos_token_id or max_new_tokens",
    "trust_remote_code": "no code of a checkpoint is ever run; leave it out",
}


@no_type_check  # `check` has its own sentences
@dataclass(repr=False)
class GenerationConfig:
    """Settings of `generate`, which describes them; None is not set.

    `model.generation_config` holds a checkpoint's own, which `generate` takes where the caller gives none. Attributes
    can be set at any time; nothing is compiled again.

    Attributes:
        others: what else transformers' file says, written back as it was.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    num_return_sequences: int | None = None
    bad_words_ids: Any = None
    suppress_tokens: Any = None
    bos_token_id: int | None = None
    eos_token_id: Any = None
    pad_token_id: int | None = None
    stop_strings: Any = None
    return_dict_in_generate: bool | None = None
    use_cache: bool | None = None
    others: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        values = [f"{name}={value!r}" for name, value in self.to_dict().items()]
        return f"{type(self).__name__}({', '.join(values)})"

    @classmethod
    def from_model_config(cls, config: IdeficsConfig) -> Self:
        """The settings of a model without a `generation_config.json`: its special tokens."""
        eos = list(config.eos_token_id) if isinstance(config.eos_token_id, tuple) else config.eos_token_id
        tokens = {"bos_token_id": config.bos_token_id, "eos_token_id": eos, "pad_token_id": config.pad_token_id}
        return cls(**tokens, others={"_from_model_config": True})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The settings of a JSON object. Those that are not implemented are kept, and refused by `generate`."""
        known = SETTINGS
        values = {name: value for name, value in values.items() if value is not None}
        if values.get("_from_model_config"):  # made of a model's whole configuration
            kept = known | _NOT_IMPLEMENTED.keys() | _NOT_IMPLEMENTED_SAMPLING.keys() | _WITHOUT_EFFECT | _OF_THE_FILE
            values = {name: value for name, value in values.items() if name in kept}
        others = {name: value for name, value in values.items() if name not in known}
        return cls(**{name: value for name, value in values.items() if name in known}, others=others)

    @classmethod
    def from_pretrained(cls, directory: AnyPath, config: IdeficsConfig) -> Self:
        """The settings of a checkpoint's directory, whose special tokens are the config's where no others are given.

        Raises:
            ValueError: the file is not a JSON object.
        """
        default = cls.from_model_config(config)
        path = directory / FILE
        if not path.is_file():
            return default
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds a {type(values).__name__}; it must be a JSON object.")
        own = cls.from_dict(values)
        tokens = {name: getattr(default, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return replace(own, **{name: value for name, value in tokens.items() if getattr(own, name) is None})

    def to_dict(self) -> dict[str, Any]:
        """The contents of `generation_config.json`: what is set."""
        own = {name: getattr(self, name) for name in sorted(SETTINGS)}
        own = {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
        return {name: value for name, value in own.items() if value is not None} | self.others

    def check(self) -> None:
        """Checks types, ranges and combinations of what is set, without a model.

        Raises:
            ValueError: one sentence that names the setting and what it must be.
        """
        for name, limits in RANGES.items():
            if (value := getattr(self, name, None)) is not None:
                number(name, value, limits)
        for name in BOOLS:
            if (value := getattr(self, name)) is not None and not isinstance(value, bool | np.bool_):
                raise ValueError(f"{name} is {shown(value)}; it must be True or False.")
        early = self.early_stopping
        if early is not None and not isinstance(early, bool | np.bool_) and early != "never":
            raise ValueError(f'early_stopping is {shown(early)}; it must be True, False or "never".')
        several = (self.num_beams or 1) > 1
        answers = self.num_return_sequences or 1
        if several and self.do_sample:
            raise ValueError("Beam search takes the likeliest tokens; leave out num_beams, or pass do_sample=False.")
        if several and answers > (self.num_beams or 1):
            raise ValueError(f"num_return_sequences is {answers}, and there are only {self.num_beams} beams.")
        if not several and answers > 1 and not self.do_sample:
            raise ValueError(f"Greedy decoding gives one answer, not {answers}; pass do_sample=True or num_beams.")
        if self.max_new_tokens is not None and (self.min_new_tokens or 0) > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}, above max_new_tokens={self.max_new_tokens}; "
                "lower the first or raise the second."
            )
        _check_stop_strings(self.stop_strings)


#: Settings that are implemented.
SETTINGS = frozenset(each.name for each in fields(GenerationConfig)) - {"others"}


def settings(own: GenerationConfig, config: Any, given: Mapping[str, Any]) -> GenerationConfig:
    """Return the settings of a call of `generate`: every setting that has a default is set.

    Arguments win over `config`, and that over the model's own settings.

    Args:
        own: the model's.
        config: the argument `generation_config`: one of ours, one of transformers', a mapping, or None.
        given: the other arguments, those that `generate` has no parameters for included; None is not given.

    Raises:
        ValueError: one sentence on a setting that is unknown, not implemented, or out of range.
    """
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping | None):
        raise ValueError(f"generation_config is a {type(config).__name__}; pass an idefics_jax.GenerationConfig.")
    given = {name: value for name, value in given.items() if value is not None}
    _refuse_unknown(given)
    layers = [own, GenerationConfig.from_dict(config or {}), GenerationConfig.from_dict(given)]
    chosen, others = dict(DEFAULTS), {}
    for layer in layers:
        values = {name: getattr(layer, name) for name in SETTINGS if getattr(layer, name) is not None}
        if {"max_length", "max_new_tokens"} & values.keys():  # a limit replaces the other kind's
            chosen = {name: value for name, value in chosen.items() if name not in ("max_length", "max_new_tokens")}
        chosen |= values
        others |= layer.others
    if not chosen["do_sample"]:
        chosen |= {name: DEFAULTS[name] for name in _SAMPLING if name not in given}
    if chosen["num_beams"] == 1:
        chosen |= {name: DEFAULTS[name] for name in _BEAMS if name not in given}
    result = GenerationConfig(**chosen, others=others)
    result.check()
    refused = _NOT_IMPLEMENTED | (_NOT_IMPLEMENTED_SAMPLING if result.do_sample else {})
    for name, unchanged in refused.items():
        value = others.get(name)
        if value is not None and not any(value == same for same in unchanged):
            mend = "leave it out" if name in given else f"set model.generation_config.others[{name!r}] = None"
            mend = mend if name in given else f"{mend}, or remove it from {FILE}"
            raise ValueError(f"{name} is {shown(value)}, which is not implemented; {mend}.")
    return result


def token_ids(name: str, value: Any, tokenizer: Any, vocabulary: int) -> list[int]:
    """Token ids of a setting that takes one or many: ids, or tokens such as "</s>", which need a tokenizer.

    Raises:
        ValueError: something that is neither, or no token of the model's.
    """
    if value is None:
        return []
    many = (not isinstance(value, str) and np.ndim(value) > 0) or isinstance(value, set | frozenset)
    ids = []
    for token in cast("list[Any]", list(value) if many else [value]):
        if isinstance(token, str):
            token = _id_of(name, token, tokenizer)
        if isinstance(token, bool | np.bool_) or not hasattr(token, "__index__"):
            raise ValueError(f"{name} holds {shown(token)}; it must be token ids.")
        id = operator.index(token)
        if not 0 <= id < vocabulary:
            raise ValueError(f"{name} holds {shown(id)}, but the model's tokens are 0 to {vocabulary - 1}.")
        ids.append(id)
    return ids


def word_ids(value: Any, tokenizer: Any, vocabulary: int) -> list[list[int]]:
    """Token sequences of `bad_words_ids`.

    Raises:
        ValueError: it is not a list of lists of token ids, or too long.
    """
    name = "bad_words_ids"
    if value is None:
        return []
    if isinstance(value, str) or np.ndim(value[0] if len(value) else [0]) == 0:
        raise ValueError(f"{name} is {shown(value)}; it must be a list of lists of token ids, one for each word.")
    if len(value) > BAD_WORDS or max(map(len, value), default=0) > BAD_WORDS:
        raise ValueError(f"{name} holds too much; at most {BAD_WORDS:,} words of {BAD_WORDS:,} tokens are possible.")
    words = [token_ids(name, word, tokenizer, vocabulary) for word in value]
    if not all(words):
        raise ValueError(f"{name} holds an empty word; each must be a list of token ids.")
    return words


def as_list(value: Any) -> list[Any]:
    """The strings of a setting that takes one or many."""
    return [value] if isinstance(value, str) else list(value or ())


def _check_stop_strings(value: Any) -> None:
    if not isinstance(value, str | list | tuple | set | frozenset | None):
        raise ValueError(f"stop_strings is {shown(value)}; it must be text, or a list of texts.")
    texts = as_list(value)
    if len(texts) > STOP_BYTES or sum(len(text) for text in texts if isinstance(text, str)) > STOP_BYTES:
        size = f"{len(texts):,} strings" if len(texts) > 1 else f"{len(texts[0]):,} characters"
        raise ValueError(f"stop_strings holds {size}; together they can have at most {STOP_BYTES:,} bytes.")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"stop_strings holds {shown(text)}; it must be text.")
        if not text:
            raise ValueError("A stop string is empty; every text would end with it.")
        check_text(text, "A stop string")
    if sum(len(text.encode()) for text in texts) > STOP_BYTES:
        raise ValueError(f"stop_strings are too long; together they can have at most {STOP_BYTES:,} bytes.")


def _id_of(name: str, token: str, tokenizer: Any) -> int:
    if tokenizer is None:
        raise ValueError(
            f"{name} holds the token {shown(token)}; pass tokenizer=processor too, "
            "or its id, processor.tokenizer.convert_tokens_to_ids(...)."
        )
    while not hasattr(tokenizer, "token_to_id") and hasattr(tokenizer, "tokenizer"):
        tokenizer = tokenizer.tokenizer
    find = getattr(tokenizer, "token_to_id", None) or tokenizer.convert_tokens_to_ids
    id = find(token)
    if id is None:
        raise ValueError(f"{name} holds {shown(token)}, which is not a token of the tokenizer.")
    return id


def _refuse_unknown(given: Mapping[str, Any]) -> None:
    known = SETTINGS | _NOT_IMPLEMENTED.keys() | _NOT_IMPLEMENTED_SAMPLING.keys() | _WITHOUT_EFFECT
    refuse("generate", {name: value for name, value in given.items() if name not in known}, known, _INSTEAD)
