"""The command line: answers on standard output, everything else on standard error."""

import io
import json
import shutil

import numpy as np
import pytest

from idefics_jax import IdeficsForVisionText2Text, IdeficsProcessor
from idefics_jax.cli.answer import StopStringFilter
from idefics_jax.cli.arguments import make_parser
from idefics_jax.cli.chat import Conversation
from idefics_jax.cli.loading import load_model
from idefics_jax.utils.compilation_cache import cache_directory
from tests.support.commands import NEW_TOKENS, PROMPT, change_tensor
from tests.support.tiny_tokenizer import END_OF_UTTERANCE_ID, FAKE_TOKEN_ID, IMAGE_TOKEN_ID

#: A short prompt, and as many answers to it as an example of `--help` asks for, whose programs these tests take.
HELLO = {"prompt": ("--prompt", "User:Hello."), "images": []}
THREE = ("--num-return-sequences", 3)


@pytest.fixture(scope="module")
def answer(checkpoint, images):
    """The library's own answer to PROMPT: its tokens and text."""
    processor = IdeficsProcessor.from_pretrained(checkpoint)
    model = IdeficsForVisionText2Text.from_pretrained(checkpoint, dtype="float32")
    inputs = processor(PROMPT, images=[list(images)])
    tokens = model.generate(
        **inputs, max_new_tokens=NEW_TOKENS, suppress_tokens=[FAKE_TOKEN_ID, IMAGE_TOKEN_ID], eos_token_id=[2, 514]
    )[0]
    text = processor.decode(tokens, skip_special_tokens=True)
    prompt = processor.decode(inputs["input_ids"][0], skip_special_tokens=True)
    assert text.startswith(prompt)
    return tokens[inputs["input_ids"].shape[1] :].tolist(), text.removeprefix(prompt).lstrip(" ")


# The prompt and its answer.


def test_the_answer_alone_is_printed(generate, answer):
    assert generate() == answer[1] + "\n"


def test_streaming_prints_the_same(generate, answer):
    assert generate("--stream") == answer[1] + "\n"


def test_json(generate, answer):
    output = json.loads(generate("--json"))
    assert output["answers"] == [{"text": answer[1], "tokens": answer[0], "finish_reason": "length"}]
    assert output["prompt"]["images"] == 2
    assert output["prompt"]["tokens"].count(IMAGE_TOKEN_ID) == 2


def test_the_prompt_can_come_from_standard_input(generate, answer, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((PROMPT + "\n").encode())))
    assert generate(prompt=("--prompt", "-")) == answer[1] + "\n"


@pytest.mark.parametrize("from_standard_input", [False, True])
def test_messages(generate, checkpoint, images, tmp_path, monkeypatch, from_standard_input):
    content = [{"type": "image", "path": str(images[0])}, {"type": "text", "text": "What is this?"}]
    text = json.dumps([{"role": "user", "content": content}])
    (tmp_path / "messages.json").write_text(text)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((text).encode())))
    source = "-" if from_standard_input else str(tmp_path / "messages.json")
    expected = generate(
        prompt=("--prompt", "User:<image>What is this?<end_of_utterance>\nAssistant:"), images=images[:1]
    )
    assert generate(prompt=("--messages", source), images=[]) == expected


def test_a_seed_draws_the_same_and_another_something_else(generate):
    drawn = [generate("--temperature", 1.5, *THREE, "--seed", seed, **HELLO) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_temperature_zero_does_not_draw(generate, answer):
    assert generate("--temperature", 0, "--top-p", 0.5) == answer[1] + "\n"


def test_drawing_from_one_is_greedy(generate, answer):
    assert generate("--top-k", 1) == answer[1] + "\n"


def test_several_answers(generate):
    arguments = ("--top-p", 0.9, "--min-p", 0.001, *THREE)
    texts = [row["text"] for row in json.loads(generate(*arguments, "--json", **HELLO))["answers"]]
    assert len(set(texts)) == 3
    assert generate(*arguments, **HELLO) == "\n\n".join(texts) + "\n"


def test_beams_come_best_first_with_their_scores(generate):
    output = json.loads(
        generate("--num-beams", 2, "--num-return-sequences", 2, "--length-penalty", 0.5, "--json", **HELLO)
    )
    scores = [row["score"] for row in output["answers"]]
    assert scores == sorted(scores, reverse=True)
    assert len({row["text"] for row in output["answers"]}) == 2


@pytest.mark.parametrize("flag", ["--json", "--stream"])
def test_a_stop_string_ends_the_answer_and_is_left_out(generate, answer, flag):
    text = answer[1]
    stop = text[len(text) // 2 :][:2]
    kept = text[: text.index(stop)]
    out = generate("--stop", stop, "--stop", "never there", flag)
    if flag == "--stream":
        assert out == kept + "\n"
    else:
        (row,) = json.loads(out)["answers"]
        assert (row["text"], row["finish_reason"]) == (kept, "stop")
        assert len(row["tokens"]) < NEW_TOKENS


def test_a_bad_word_does_not_occur(generate, checkpoint, answer):
    tokenizer = IdeficsProcessor.from_pretrained(checkpoint).tokenizer
    word = next(token for token in answer[0] if tokenizer.encode(tokenizer.decode([token])) == [token])
    output = json.loads(generate("--bad-word", tokenizer.decode([word]), "--json"))
    assert word not in output["answers"][0]["tokens"]


def test_repetition_penalty_and_least_tokens_are_passed_on(generate, answer):
    assert generate("--repetition-penalty", 2.0) != answer[1] + "\n"
    assert generate("--min-new-tokens", NEW_TOKENS) == answer[1] + "\n"


@pytest.fixture(scope="module")
def loud(checkpoint, tmp_path_factory):
    """The checkpoint with the additional tokens' scores far above or far below all others."""
    loud = shutil.copytree(checkpoint, tmp_path_factory.mktemp("loud") / "loud")
    change_tensor(loud, "lm_head.additional_fc.weight", lambda rows: rows * 100)
    return loud


def test_image_tokens_are_suppressed_and_the_end_of_utterance_ends(generate, loud):
    (row,) = json.loads(generate("--json", model=loud))["answers"]
    assert not {FAKE_TOKEN_ID, IMAGE_TOKEN_ID} & set(row["tokens"])
    assert row["tokens"][-1] == END_OF_UTTERANCE_ID
    assert row["finish_reason"] == "stop"
    processor, model = IdeficsProcessor.from_pretrained(loud), load_model(str(loud), None)
    inputs = processor("User: Hello.")
    free = model.generate(**inputs, max_new_tokens=NEW_TOKENS, eos_token_id=())
    assert {FAKE_TOKEN_ID, IMAGE_TOKEN_ID} & set(free[0].tolist()), "this model would say them"


def test_text_is_cut_at_a_stop_string_however_the_tokens_fall(checkpoint):
    tokenizer = IdeficsProcessor.from_pretrained(checkpoint).tokenizer
    said = "  An image of two dogs.\nUser: And?"
    for stops, wanted in [
        ([], said.strip(" ")),
        (["\nUser:"], "An image of two dogs."),
        (["\nUser: Who", "dogs?"], said.strip(" ")),
        (["two dogs", "of tw"], "An image "),
    ]:
        text = StopStringFilter(tokenizer, [1, *tokenizer.encode("Assistant:")], stops)
        pieces = [text.put(token) for token in [*tokenizer.encode(said), END_OF_UTTERANCE_ID]]
        assert "".join(pieces) + text.end() == wanted
        assert len([piece for piece in pieces if piece]) > 2, "it comes in pieces"


def test_a_character_that_the_terminal_does_not_have_is_no_mishap(generate, checkpoint, tmp_path, monkeypatch):
    spelt = shutil.copytree(checkpoint, tmp_path / "spelt")
    tokenizer = json.loads((spelt / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"] = {
        piece.replace("a", "ä"): token for piece, token in tokenizer["model"]["vocab"].items()
    }
    tokenizer["model"]["merges"] = [merge.replace("a", "ä") for merge in tokenizer["model"]["merges"]]
    (spelt / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    generate(model=spelt)
    assert b"?" in terminal.buffer.getvalue()


def test_the_dtype_suits_the_device(checkpoint, capsys):
    assert load_model(str(checkpoint), None).config.dtype == "float32"
    assert "Computing in float32" in capsys.readouterr().err
    model = load_model(str(checkpoint), "bfloat16")
    assert model.config.dtype == str(model.head.table.dtype) == "bfloat16"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("platform", "variable", "directory"),
    [
        ("linux", "XDG_CACHE_HOME", "{}/idefics-jax"),
        ("linux", None, "~/.cache/idefics-jax"),
        ("darwin", None, "~/Library/Caches/idefics-jax"),
        ("win32", "LOCALAPPDATA", "{}/idefics-jax"),
    ],
)
def test_the_cache_is_where_the_platform_keeps_caches(monkeypatch, tmp_path, platform, variable, directory):
    monkeypatch.setattr("sys.platform", platform)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    expected = directory.format(tmp_path).replace("~", str(tmp_path / "home"))
    assert str(cache_directory()) == expected


# A conversation.


def test_a_conversation_remembers_and_forgets(chat, generate, images):
    lines, _ = chat(f"/image {images[0]}", "What is this?", "And who is that?", "/reset", "What is this?")
    assert len(lines) == 3
    first = generate(prompt=("--prompt", "User:<image>What is this?<end_of_utterance>\nAssistant:"), images=images[:1])
    assert lines[0] + "\n" == first
    unseen = generate(prompt=("--prompt", "User: What is this?<end_of_utterance>\nAssistant:"), images=[])
    assert lines[2] + "\n" == unseen != first
    without_image, _ = chat("What is this?", "And who is that?", "/quit", "not read")
    assert len(without_image) == 2
    assert without_image[1] != lines[1], "the second answer sees the first turn's image"


@pytest.mark.parametrize(("limit", "ended"), [(3, False), (NEW_TOKENS, True)])
def test_a_turn_reads_only_what_is_new_and_answers_as_if_all_were_read(checkpoint, loud, images, limit, ended):
    model = loud if ended else checkpoint
    options = make_parser().parse_args(["chat", "--model", str(model), "--max-new-tokens", str(limit)])
    conversation = Conversation(options)
    conversation.attach(str(images[0]))
    conversation.attach(str(images[1]))
    first = conversation.turn("Is <image> a cat, and <image>?")
    conversation.ask("Is <image> a cat, and <image>?")
    said = conversation.context.conversations[0]
    second = conversation.turn("And who is that?")
    assert not second["image_attention_mask"].any(), "the images are not read again"
    assert (said[-1] == END_OF_UTTERANCE_ID) == ended
    text = "User: And who is that?<end_of_utterance> \nAssistant:"
    text = text if ended else f"<end_of_utterance> \n{text}"
    assert conversation.processor.decode(second["input_ids"][0]).strip() == text
    conversation.ask("And who is that?")
    everything = conversation.context.conversations[0]
    ids = np.concatenate([said, second["input_ids"][0]])
    seen = first["image_attention_mask"][0]
    rest = np.repeat(seen[-1:], len(ids) - len(seen), axis=0)
    alone = conversation.model.generate(
        input_ids=ids[None],
        pixel_values=first["pixel_values"],
        image_attention_mask=np.concatenate([seen, rest])[None],
        **conversation.rules,
    )
    assert alone[0].tolist() == everything.tolist()


def test_a_mistake_does_not_end_the_conversation(chat, images, tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    lines, remarks = chat(
        "/image nowhere.png",
        f"/image {tmp_path / 'text.png'}",
        "/dance",
        "Is <image> a cat?",
        "/help",
        "",
        f"/image '{images[1]}'",
        "Is <image> a cat?",
        status=1,
    )
    assert len(lines) == 1
    for said in ("nowhere.png does not exist", "not an image", "no command /dance", "1 <image> marks, and 0", "/reset"):
        assert said in remarks
