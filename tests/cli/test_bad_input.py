"""What goes wrong on the command line: one sentence, status 1, no traceback, nothing on standard output."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from idefics_jax.cli import main
from tests.support.commands import change_tensor, check_sentence


def delete(name):
    return lambda directory: (directory / name).unlink()


def cut(name):
    def spoil(directory):
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: len(content) // 2])

    return spoil


def rename_in_index(directory):
    index = directory / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002-of-00002", "../model-00002-of-00002"))


def configure(**values):
    def spoil(directory):
        config = json.loads((directory / "config.json").read_text()) | values
        (directory / "config.json").write_text(json.dumps(config))

    return spoil


def without_image_tokens(directory):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        text = (directory / name).read_text(encoding="utf-8").replace("<image>", "<picture>")
        (directory / name).write_text(text, encoding="utf-8")


def with_nan(directory):
    change_tensor(directory, "model.layers.1.mlp.up_proj.weight", lambda kernel: kernel * np.nan)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (delete("model-00002-of-00002.safetensors"), "model-00002-of-00002.safetensors, which .* names, is missing"),
        (cut("model-00001-of-00002.safetensors"), "model-00001-of-00002.safetensors is cut off"),
        (rename_in_index, "names ../model-00002-of-00002.safetensors, outside its own directory"),
        (configure(alpha_type="matrix"), "alpha_type 'matrix' is not implemented"),
        (configure(hidden_size=32), "has shape .* the config wants"),
        (configure(num_hidden_layers=1), "[Uu]nknown .*gated_cross_attn_layers.1"),
        (delete("config.json"), "has no config.json"),
        (cut("config.json"), "config.json"),
        (delete("tokenizer.json"), "neither tokenizer.json nor tokenizer.model"),
        (cut("tokenizer.json"), "tokenizer.json is not valid JSON"),
        (without_image_tokens, "The tokenizer has no <image> token"),
        (with_nan, "NaN"),
    ],
)
def test_a_bad_checkpoint(generate, checkpoint, tmp_path, spoil, message):
    directory = shutil.copytree(checkpoint, tmp_path / "spoilt")
    spoil(directory)
    check_sentence(generate(model=directory, status=1), message)


def test_no_checkpoint(generate, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check_sentence(generate(model=tmp_path / "nowhere", status=1), "nowhere is not a directory, and no checkpoint")


def bad_images(folder, good):
    """Files that are not what their names say."""
    bomb = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(bomb, "PNG")
    (folder / "bomb.png").write_bytes(bomb.getvalue())
    (folder / "text.png").write_text("not an image")
    (folder / "cut.jpg").write_bytes(good.read_bytes()[:-2000])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "missing.png does not exist"),
        (".", "is a directory, not a file"),
        ("text.png", "text.png is not an image"),
        ("cut.jpg", "cut.jpg is truncated or damaged"),
        ("bomb.png", "bomb.png is too large to be read safely"),
    ],
)
def test_a_bad_image(generate, images, tmp_path, name, message):
    bad_images(tmp_path, images[0])
    check_sentence(generate(images=[images[0], tmp_path / name], status=1), message)


@pytest.mark.parametrize(
    ("prompt", "count", "message"),
    [
        ("User:<image>", 2, "1 <image> marks and 2 images"),
        ("User:<image> or <image>?", 1, "2 <image> marks and 1 images"),
        ("User:<image>?", 0, "1 <image> marks and 0 images"),
        ("User:", 2, "0 <image> marks and 2 images"),
        ("", 0, "empty"),
        ("word " * 2100, 0, "only 2,048 positions"),
    ],
)
def test_a_bad_prompt(generate, images, prompt, count, message):
    check_sentence(generate(prompt=("--prompt", prompt), images=images[:count], status=1), message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "is not JSON"),
        ("{}", "must be a list of messages"),
        ("[]", "no messages"),
        ('[{"role": "system", "content": "x"}]', "role 'system'"),
        ('[{"role": "user", "content": [{"type": "image"}]}]', "neither a text nor an image"),
        ('[{"role": "user", "content": [{"type": "image", "path": "nowhere.png"}]}]', "nowhere.png does not exist"),
    ],
)
def test_bad_messages(generate, tmp_path, content, message):
    (tmp_path / "messages.json").write_text(content)
    prompt = ("--messages", str(tmp_path / "messages.json"))
    check_sentence(generate(prompt=prompt, images=[], status=1), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-new-tokens", "2", "--min-new-tokens", "3"], "more than --max-new-tokens, 2"),
        (["--stop", ""], "stop string is empty"),
        (["--num-return-sequences", "2"], "add --temperature or --num-beams"),
        (["--num-beams", "2", "--top-k", "3"], "--num-beams takes the likeliest"),
        (["--num-beams", "2", "--stream"], "--stream prints one answer"),
    ],
)
def test_settings_that_do_not_fit(generate, arguments, message):
    check_sentence(generate(*arguments, status=1), message)


def test_messages_have_their_own_images(generate, images):
    err = generate(prompt=("--messages", "nowhere.json"), status=1)
    check_sentence(err, "name the images of --messages in the messages")
    check_sentence(generate(prompt=("--messages", "nowhere.json"), images=[], status=1), "nowhere.json does not exist")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: {demo,generate,chat,eval,train,convert,inspect,verify}"),
        (["generate", "--model", "x"], "one of the arguments --prompt --question --messages is required"),
        (
            ["generate", "--model", "x", "--prompt", "y", "--top-k", "many"],
            "argument --top-k: 'many' must be a whole number, 0 or more",
        ),
        (["generate", "--model", "x", "--prompt", "y", "--json", "--stream"], "not allowed with"),
        (["chat", "--model", "x", "--image", "y"], "unrecognized arguments: --image y"),
    ],
)
def test_usage_errors_are_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert "--help" in err


def test_a_base_checkpoint_does_not_chat(chat, checkpoint, tmp_path):
    base = shutil.copytree(checkpoint, tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        text = (base / name).read_text(encoding="utf-8").replace("<end_of_utterance>", "<other>")
        (base / name).write_text(text, encoding="utf-8")
    lines, err = chat("Hello.", status=1, model=base)
    assert lines == []
    check_sentence(err, "chat needs an instruct checkpoint")


def test_a_traceback_for_those_who_ask(generate, monkeypatch, tmp_path):
    monkeypatch.setenv("IDEFICS_JAX_DEBUG", "1")
    with pytest.raises(ValueError, match="add --temperature"):
        generate("--num-return-sequences", 2)


@pytest.mark.parametrize(
    "commands", [["nowhere.png", "{d}/text.png", "{d}/postscript.png", "http://127.0.0.1:9/x.png"]]
)
def test_bad_images_do_not_end_a_conversation(chat, images, tmp_path, commands):
    (tmp_path / "text.png").write_text("words")
    (tmp_path / "postscript.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n{} loop\n")
    bad = [f"/image {command.format(d=tmp_path)}" for command in commands]
    lines, err = chat(f"/image {images[0]}", *bad, "What is this?", status=1)
    assert lines
    assert err.count("idefics-jax: ") == len(commands)
    for message in ("does not exist", "is not an image", "is PostScript", "no public address"):
        assert message in err


def test_high_depth_is_one_line_and_scales(generate, tmp_path):
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.fromarray((ramp / 257).round().astype(np.uint8)).save(tmp_path / "grey.png")

    def tokens(name, *arguments):
        found = generate("--json", *arguments, prompt=("--prompt", "<image>What?"), images=[tmp_path / name])
        return json.loads(found)["answers"]

    assert tokens("deep.png", "--high-depth", "scale") == tokens("grey.png")
