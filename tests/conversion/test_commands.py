"""The program as people start it: every command that README and `--help` show, and progress at a terminal."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from conversion import cli
from tests.support.conversion import ROOT
from tests.support.terminal import read_to_end

README = (ROOT / "README.md").read_text(encoding="utf-8")
HELP = cli.EXAMPLES + cli.CONVERT_EXAMPLES + cli.INSPECT_EXAMPLES + cli.VERIFY_EXAMPLES


def examples(text):
    """The arguments of each command shown; what follows a pipe or a number sign is not part of it."""
    lines = re.findall(r"^ *python -m conversion (.*)$", re.sub(r"\\\n *", "", text), re.MULTILINE)
    return [re.split(r" +[#|] ", line)[0].strip() for line in lines]


SHOWN = sorted(set(examples(README) + examples(HELP)))


def test_the_examples_are_found():
    assert len(examples(README)) == 4
    assert len(examples(HELP)) == 12


@pytest.mark.parametrize(
    "command",
    [
        # By PyTorch, where that is installed; else test_verify.py's test_logits.
        pytest.param(command, marks=pytest.mark.slow if "--logits" in command else ())
        for command in SHOWN
        if "gs://" not in command
    ],
)
def test_a_shown_command_works(conversion, published, published_orbax, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for name in ("idefics-9b", "idefics-80b", "in", "HuggingFaceM4/idefics-9b", "HuggingFaceM4/idefics-9b-instruct"):
        shutil.copytree(published, name)
    shutil.copytree(ROOT / "examples", "examples")
    arguments = shlex.split(command)
    if arguments[0] != "convert" or arguments[1] == "fine-tuned-orbax":
        for name in ("idefics-9b-orbax", "idefics-9b-instruct-orbax", "fine-tuned-orbax"):
            shutil.copytree(published_orbax, name)
    assert conversion(*arguments)


def test_the_command_for_several_processes_is_understood():
    (command,) = [command for command in SHOWN if "gs://" in command]
    options = cli.make_parser().parse_args(shlex.split(command))
    assert (options.num_processes, options.process_id, options.out) == (2, 0, "gs://bucket/out")


def test_help_does_not_wait_for_jax():
    code = "import sys; from conversion.cli import main\n"
    code += "try: main(sys.argv[1:])\nfinally: assert 'jax' not in sys.modules"
    for arguments in (["--help"], ["convert", "--help"]):
        process = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert (process.returncode, process.stderr) == (0, "")
        assert process.stdout.startswith("usage: python -m conversion")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: {convert,inspect,verify}"),
        (["convert", "x"], "required: OUT"),
        (["convert", "x", "y", "--to", "onnx"], "invalid choice: 'onnx'"),
        (["convert", "x", "y", "--max-shard-size", "many"], "'many' is not a size; write it as 500MB or 5GB"),
        (["convert", "x", "y", "--max-shard-size=-5GB"], "'-5GB' is not a size"),
    ],
)
def test_usage_errors_are_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_sizes():
    assert [cli.size(text) for text in ("5GB", "0.5gb", "20kb", "7MB", "123")] == [
        5 * 10**9,
        5 * 10**8,
        20000,
        7 * 10**6,
        123,
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_shows_progress(random_checkpoint, tmp_path):
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "conversion", "convert", str(random_checkpoint), str(tmp_path / "out")]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    shown = read_to_end(ours)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert "141 tensors" in out
    assert b"Writing out" in shown
    assert re.search(rb"[kMG]B/s", shown)
    assert re.search(rb"\d:\d\d:\d\d", shown)
