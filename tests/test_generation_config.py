"""Settings of `generate`: ranges, where they come from, and the file that holds them."""

import json
import pydoc

import jax.numpy as jnp
import numpy as np
import pytest

import idefics_jax
from idefics_jax import GenerationConfig, IdeficsForVisionText2Text
from idefics_jax.generation.shapes import Shapes, Sizes
from idefics_jax.generation_config import settings
from idefics_jax.parallel.mesh import as_mesh
from tests.reference.generation import EOS, config, random_model, random_prompts, reference_generate, reference_model
from tests.support.tiny_processor import tiny_processor
from tests.support.tiny_tokenizer import VOCAB_SIZE

OWN = GenerationConfig(eos_token_id=2, pad_token_id=0)
NAN = float("nan")
BAD = [
    (
        {"max_new_tokens": 10**30},
        r"max_new_tokens is 1000000000000000000000000000000; it must be a whole number from 1",
    ),
    ({"max_new_tokens": 10**4000}, "max_new_tokens is a number of 4,00. digits; it must be"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be"),
    ({"max_new_tokens": -1}, "max_new_tokens is -1; it must be"),
    ({"max_new_tokens": True}, "max_new_tokens is True; it must be"),
    ({"max_new_tokens": 2.0}, r"max_new_tokens is 2\.0; it must be"),
    ({"max_new_tokens": "5"}, "max_new_tokens is '5'; it must be"),
    ({"max_length": 0}, "max_length is 0; it must be"),
    ({"min_new_tokens": -1}, "min_new_tokens is -1; it must be"),
    ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens is 5, above max_new_tokens=4; lower the first"),
    ({"temperature": 0.0}, r"temperature is 0\.0; it must be above 0 \(do_sample=False is greedy\)\."),
    ({"temperature": NAN}, "temperature is nan; it must be above 0"),
    ({"temperature": -1, "do_sample": True}, "temperature is -1; it must be above 0"),
    ({"temperature": float("inf")}, "temperature is inf; it must be above 0"),
    ({"temperature": 1e-300}, "temperature is 1e-300; it must be above 0"),
    ({"temperature": "hot"}, "temperature is 'hot'; it must be above 0"),
    ({"top_k": -1}, "top_k is -1; it must be a whole number, 0 or more"),
    ({"top_k": 2.5}, "top_k is 2.5; it must be a whole number, 0 or more"),
    ({"top_p": 0}, "top_p is 0; it must be above 0 and at most 1"),
    ({"top_p": 2}, "top_p is 2; it must be above 0 and at most 1"),
    ({"top_p": NAN}, "top_p is nan; it must be"),
    ({"min_p": 1.5}, "min_p is 1.5; it must be between 0 and 1"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be above 0"),
    ({"repetition_penalty": NAN}, "repetition_penalty is nan; it must be above 0"),
    ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size is -2; it must be"),
    ({"num_beams": 0}, "num_beams is 0; it must be a whole number from 1 to 256"),
    ({"num_beams": 5_000}, "num_beams is 5000; it must be a whole number from 1 to 256"),
    ({"num_return_sequences": 10**6}, "num_return_sequences is 1000000; it must be a whole number from 1 to 4,096"),
    ({"num_beams": 2, "length_penalty": NAN}, "length_penalty is nan; it must be between -10 and 10"),
    ({"length_penalty": 1e308}, r"length_penalty is 1e\+308; it must be between -10 and 10"),
    ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping is 'soon'; it must be True, False or \"never\""),
    ({"do_sample": 1}, "do_sample is 1; it must be True or False"),
    (
        {"do_sample": True, "num_beams": 2},
        "Beam search takes the likeliest tokens; leave out num_beams, or pass",
    ),
    ({"stop_strings": ""}, "A stop string is empty; every text would end with it"),
    ({"stop_strings": 5}, "stop_strings is 5; it must be text, or a list of texts"),
    ({"stop_strings": ["a", 5]}, "stop_strings holds 5; it must be text"),
    ({"stop_strings": "x" * 10**6}, "stop_strings holds 1,000,000 characters; together they can have at most 2,000"),
    ({"stop_strings": ["x"] * 10**5}, "stop_strings holds 100,000 strings; together they can have at most 2,000"),
    ({"stop_strings": "猫" * 1_000}, "stop_strings are too long; together they can have at most 2,000 bytes"),
    ({"stop_strings": "a\ud83d"}, "A stop string is not valid Unicode: character 2 is half of a surrogate pair"),
    ({"max_tokens": 5}, r"generate does not take max_tokens; did you mean max_new_tokens\?"),
    ({"no_repeat_ngram": 2}, r"did you mean no_repeat_ngram_size\?"),
    ({"zzz": 2}, "generate does not take zzz; leave it out"),
    ({"past_key_values": ()}, "generate does not take past_key_values: pass cache=output.cache"),
    ({"logits_processor": [1]}, "generate does not take logits_processor: use repetition_penalty"),
    ({"output_scores": True}, r"generate does not take output_scores: call model\(\.\.\.\) on the answer"),
    ({"typical_p": 0.9, "do_sample": True}, "typical_p is 0.9, which is not implemented; leave it out"),
    ({"penalty_alpha": 0.6}, "penalty_alpha is 0.6, which is not implemented; leave it out"),
    ({"generation_config": 5}, "generation_config is a int; pass an idefics_jax.GenerationConfig"),
]


def chosen(own=OWN, generation_config=None, **given):
    return settings(own, generation_config, given)


@pytest.mark.parametrize(("given", "sentence"), BAD, ids=[sentence[:40] for _, sentence in BAD])
def test_settings_that_are_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        chosen(**given)


def test_numbers_of_other_libraries():
    for one in (np.int32(3), np.int64(3), np.array(3), jnp.int32(3)):
        assert chosen(max_new_tokens=one).max_new_tokens == 3
    for one in (np.float32(0.5), np.float64(0.5), np.array(0.5), jnp.float32(0.5)):
        assert chosen(temperature=one, do_sample=np.bool_(True)).temperature == 0.5
    assert chosen(max_new_tokens=None, temperature=None).temperature == 1.0


def test_arguments_win_over_generation_config_and_that_over_the_models():
    own = GenerationConfig(max_new_tokens=2, repetition_penalty=1.5, eos_token_id=[2, 9])
    assert chosen(own).max_new_tokens == 2
    assert chosen(own, GenerationConfig(max_new_tokens=3)).max_new_tokens == 3
    result = chosen(own, {"max_new_tokens": 3, "repetition_penalty": 1.1}, max_new_tokens=4)
    assert (result.max_new_tokens, result.repetition_penalty, result.eos_token_id) == (4, 1.1, [2, 9])
    assert chosen(own, max_length=30).max_new_tokens is None, "the caller's limit replaces the file's"
    assert chosen(own, eos_token_id=()).eos_token_id == ()
    assert chosen(GenerationConfig(temperature=0.0, top_p=0.5)).top_p == 1.0, "no effect without drawing"


def test_what_the_file_asks_for_and_is_not_implemented():
    own = GenerationConfig.from_dict({"typical_p": 0.9, "diversity_penalty": 0.0, "cache_implementation": "static"})
    chosen(own)
    with pytest.raises(ValueError, match=r"typical_p is 0\.9, .*model\.generation_config\.others\['typical_p'\] = "):
        chosen(own, do_sample=True)
    own.others["typical_p"] = None
    chosen(own, do_sample=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    random_model(config(vocab_size=VOCAB_SIZE)).save_pretrained(directory)
    return directory


def test_the_file_is_read_and_written(saved, tmp_path):
    assert json.loads((saved / "generation_config.json").read_text()) == {
        "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    written = {"max_new_tokens": 2, "eos_token_id": [2, 514], "repetition_penalty": 1.2, "of_a_user": "kept"}
    (saved / "generation_config.json").write_text(json.dumps(written))
    model = IdeficsForVisionText2Text.from_pretrained(saved)
    batch = random_prompts(model.config, 0, 2, images=(0, 0))
    assert model.generate(**batch).shape[1] == batch["input_ids"].shape[1] + 2
    assert model.generate(**batch, max_new_tokens=3, eos_token_id=()).shape[1] == batch["input_ids"].shape[1] + 3
    model.generation_config.max_new_tokens = 1
    assert model.generate(**batch).shape[1] == batch["input_ids"].shape[1] + 1
    model.save_pretrained(tmp_path)
    expected = written | {"max_new_tokens": 1, "bos_token_id": 1, "pad_token_id": 0}
    assert json.loads((tmp_path / "generation_config.json").read_text()) == expected
    for content, sentence in (("[1]", "holds a list; it must be a JSON object"), ("{", "is not valid JSON")):
        (tmp_path / "generation_config.json").write_text(content)
        with pytest.raises(ValueError, match=sentence):
            IdeficsForVisionText2Text.from_pretrained(tmp_path)


def test_a_model_says_what_it_is(saved):
    model = IdeficsForVisionText2Text.from_pretrained(
        saved, torch_dtype="float32", low_cpu_mem_usage=True, revision="main", mesh="fsdp=4,tensor=2"
    )
    said = (
        f"{sum(x.size for x in __import__('jax').tree.leaves(model)):,} parameters, computing in float32 on a mesh of"
    )
    assert repr(model).startswith(f"IdeficsForVisionText2Text({said}")
    assert model.eval() is model.train() is model.to("cpu") is model.to(jnp.float32) is model.to("float32") is model
    assert model.dtype == "float32"
    with pytest.raises(ValueError, match="The model is spread over 8 devices"):
        print(model.device)
    for target in ("cuda", "cuda:0", "bfloat16", jnp.float16, "nonsense"):
        with pytest.raises(ValueError, match=r"A model stays where it was loaded.*pass dtype= and mesh= to from_pretr"):
            model.to(target)
    for arguments, sentence in (
        ({"device_map": "auto"}, "from_pretrained does not take device_map: pass mesh="),
        ({"load_in_8bit": True}, r'quantization is not implemented; pass dtype="bfloat16"'),
        ({"mesh": "tensor"}, 'mesh="tensor" is not a mesh: .tensor. must be tensor='),
        ({"dtype": "float17"}, "dtype is 'float17'; it must be bfloat16, float32 or float16"),
        ({"progres": True}, r"from_pretrained does not take progres; did you mean progress\?"),
    ):
        with pytest.raises(ValueError, match=sentence):
            IdeficsForVisionText2Text.from_pretrained(saved, **arguments)
    with pytest.raises(ValueError, match="A mesh of data=1, fsdp=1, tensor=3 does not use 8 devices"):
        as_mesh("tensor=3")


def test_tokens_as_text(saved):
    model, processor = IdeficsForVisionText2Text.from_pretrained(saved), tiny_processor()
    batch = random_prompts(model.config, 0, 2, images=(0, 0))
    end = processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    expected = model.generate(**batch, max_new_tokens=6, eos_token_id=[2, end], suppress_tokens=[513])
    for tokenizer in (processor, processor.tokenizer):
        settings = {
            "eos_token_id": ["</s>", "<end_of_utterance>"],
            "suppress_tokens": "<image>",
            "tokenizer": tokenizer,
        }
        np.testing.assert_array_equal(model.generate(**batch, max_new_tokens=6, **settings), expected)
    for arguments, sentence in (
        ({"eos_token_id": "</s>"}, r"eos_token_id holds the token '</s>'; pass tokenizer=processor too, or its id"),
        ({"eos_token_id": "zzz", "tokenizer": processor}, "eos_token_id holds 'zzz', which is not a token"),
        ({"eos_token_id": 2.0}, r"eos_token_id holds 2\.0; it must be token ids"),
        ({"eos_token_id": True}, "eos_token_id holds True; it must be token ids"),
        ({"suppress_tokens": [-1]}, "suppress_tokens holds -1, but the model's tokens are 0 to 514"),
        ({"bad_words_ids": [5]}, r"bad_words_ids is \[5\]; it must be a list of lists of token ids"),
        ({"bad_words_ids": "word"}, "bad_words_ids is 'word'; it must be a list of lists"),
        ({"bad_words_ids": [[1], []]}, "bad_words_ids holds an empty word"),
        ({"bad_words_ids": [[1, 999]]}, "bad_words_ids holds 999, but the model's tokens are 0 to 514"),
        ({"seed": -1}, "seed is -1; it must be a whole number from 0 to 4,294,967,295"),
        ({"seed": 10**30}, "seed is 1000000000000000000000000000000; it must be"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model.generate(**batch, **arguments)


def test_help_shows_the_signature():
    text = pydoc.plain(pydoc.render_doc(IdeficsForVisionText2Text.generate))
    assert "max_new_tokens: int | None = None" in text
    assert "no_repeat_ngram_size: so many tokens in a row occur only once" in text
    assert idefics_jax.__version__.count(".") == 2


FILES = [
    {"max_new_tokens": 2, "eos_token_id": EOS, "pad_token_id": 0},
    {"max_new_tokens": 12, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "eos_token_id": [2, 11]},
    {"max_length": 40, "min_length": 20, "eos_token_id": EOS, "pad_token_id": 0},
    {"num_beams": 3, "max_new_tokens": 8, "no_repeat_ngram_size": 3, "eos_token_id": EOS, "pad_token_id": 0},
    {"do_sample": False, "temperature": 0.3, "max_new_tokens": 5, "eos_token_id": 2, "pad_token_id": 0},
    {"_from_model_config": True, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0, "zzz": 3},
]


@pytest.mark.torch
@pytest.mark.slow
def test_answers_by_the_file_are_transformers(tmp_path):
    pytest.importorskip("torch")
    from transformers import GenerationConfig as Theirs

    model = random_model(config())
    reference = reference_model(model)
    for content in FILES:
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
        reference.generation_config = Theirs.from_pretrained(tmp_path)
        model.generation_config = GenerationConfig.from_pretrained(tmp_path, model.config)
        for arguments in ({}, {"max_new_tokens": 7}):
            batch = random_prompts(model.config, 3, 4)
            expected = reference_generate(reference, batch, **arguments)
            np.testing.assert_array_equal(model.generate(**batch, **arguments), expected)


def test_a_short_last_batch_takes_the_programs_of_the_others():
    eight = Sizes(rows=8, columns=64, images=8, slots=256, room=256)
    four = eight._replace(rows=4)
    shapes = Shapes()
    assert shapes.fit(four, 20, 10**6) == four, "there are no others"
    shapes = Shapes()
    assert shapes.fit(eight, 20, 10**6) == eight
    assert shapes.fit(four, 20, 10**6) == eight
    assert shapes.fit(eight._replace(columns=128), 20, 10**6).columns == 128, "longer than any"
    assert shapes.fit(four, 20, 10**11) == four, "of a large model it costs more than compiling"
    assert shapes.fit(four, 20, 10**6) == four, "and now it has its own"
    shapes = Shapes()
    shapes.fit(eight, 20, 10**8)
    fitted = [shapes.fit(four, 20, 10**8) for _ in range(6)]
    assert fitted[0] == eight, "once"
    assert fitted[-1] == four, "but not for ever"


def test_rows_that_fill_up_change_no_answer():
    model = random_model(config())
    batch, last = (random_prompts(model.config, seed, rows, lengths=(20, 28)) for seed, rows in ((0, 8), (1, 3)))
    alone = random_model(config()).generate(**last, max_new_tokens=5, eos_token_id=EOS)
    model.generate(**batch, max_new_tokens=5, eos_token_id=EOS)
    output = model.generate(**last, max_new_tokens=5, eos_token_id=EOS, return_dict_in_generate=True)
    np.testing.assert_array_equal(output.sequences, alone)
    assert output.cache.cache.valid.shape[0] == 8
