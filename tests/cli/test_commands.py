"""The command as a process of its own, and every command that README and `--help` show."""

import contextlib
import io
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from idefics_jax.cli import main
from idefics_jax.cli.arguments import CHAT_EXAMPLES, EXAMPLES, GENERATE_EXAMPLES
from tests.support.terminal import read_to_end

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = Path(sys.executable).parent / "idefics-jax"
PROMPT = ["--prompt", "User:Hello."]
FEW = ["--max-new-tokens", "12"]
PUBLISHED = "HuggingFaceM4/idefics-9b-instruct"


@pytest.fixture
def start():
    """Starts `idefics-jax` with pipes; it does not outlive the test."""
    processes = []

    def run(*arguments, **settings):
        settings = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
        processes.append(subprocess.Popen([COMMAND, *map(str, arguments)], text=True, **settings))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


# Processes.


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_does_not_wait_for_jax(argument):
    code = "import sys; from idefics_jax.cli import main\n"
    code += "try: main(sys.argv[1:])\nfinally: assert 'jax' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("usage: idefics-jax" if argument == "--help" else "idefics-jax 0.")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_shows_progress_and_the_next_run_compiles_nothing(start, checkpoint, tmp_path):
    import pty

    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path), "TERM": "xterm", "COLUMNS": "100"}
    arguments = ["generate", "--model", checkpoint, *PROMPT, *FEW]
    ours, theirs = pty.openpty()
    process = start(*arguments, stderr=theirs, env=environment)
    os.close(theirs)
    shown = read_to_end(ours)
    answer = process.stdout.read()
    assert process.wait() == 0
    assert len(answer) > 5
    assert b"Loading checkpoint" in shown
    assert re.search(rb"Compiling program \d", shown)

    kept = sorted(path.name for path in (tmp_path / "idefics-jax" / "compiled").glob("*-cache"))
    assert kept
    out, err = start(*arguments, env=environment).communicate()
    assert out == answer
    assert err.startswith("Computing in float32")
    assert err.count("\n") == 1
    assert sorted(path.name for path in (tmp_path / "idefics-jax" / "compiled").glob("*-cache")) == kept


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_conversation_answers_at_once_and_an_interrupt_ends_it_quietly(start, checkpoint):
    process = start("chat", "--model", checkpoint, *FEW)
    process.stdin.write("Hello.\n")
    process.stdin.flush()
    assert len(process.stdout.readline()) > 5, "answered while the input is still open"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_at_a_terminal_an_interrupt_ends_the_answer_not_the_conversation(checkpoint):
    import pty

    terminal, inside = pty.openpty()
    # Not pty.fork(), of which JAX warns in this process; the child makes the terminal its own, to be interrupted by it.
    own = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", own, COMMAND, "chat", "--model", str(checkpoint), "--max-new-tokens", "1500"]
    child = subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside, start_new_session=True)
    os.close(inside)

    def expect(text, within=60):
        shown, end = b"", time.monotonic() + within
        while text not in shown:
            assert time.monotonic() < end, shown
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 1 << 16)

    try:
        expect(b"> ")
        os.write(terminal, b"Hello.\n")
        expect(b"Compiling program")
        os.write(terminal, b"\x03")
        expect(b"are forgotten.\r\n> ")
        os.write(terminal, b"/quit\n")
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            expect(b"Traceback")
        assert child.wait() == 0
    finally:
        os.close(terminal)
        child.kill()
        child.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_a_reader_that_leaves_is_no_mishap(start, checkpoint):
    process = start("generate", "--model", checkpoint, *PROMPT, *FEW, "--stream", stdin=subprocess.DEVNULL)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 141
    assert err.startswith("Computing in float32")
    assert err.count("\n") == 1


def test_a_failure_reaches_the_shell(start, checkpoint):
    process = start("generate", "--model", checkpoint, "--image", "nowhere.png", "--prompt", "<image>")
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err == "idefics-jax: The image file nowhere.png does not exist.\n"


# What README and help say.


def examples(text):
    """The commands in a help text or README: lines that begin with or pipe into `idefics-jax`, continued ones whole."""
    joined = re.sub(r"\\\n *", "", text)
    joined = re.sub(r"\},\n *", "}, ", joined)  # the messages' JSON is on two lines
    lines = [line.strip() for line in joined.splitlines()]
    shown = r"idefics-jax (demo|generate --|chat --)|(echo|printf) .*\| idefics-jax"
    return [line for line in lines if re.match(shown, line)]


SHOWN = examples(README) + examples(EXAMPLES) + examples(GENERATE_EXAMPLES) + examples(CHAT_EXAMPLES)
# Those of the pocket model: the first is run, with its answer, as README's main command, the other in test_pocket.py.
POCKET = {'idefics-jax generate --image guitar.png --question "What is in this picture?"', "idefics-jax demo"}


def test_the_examples_are_found():
    assert len(examples(README)) == 3
    assert [len(examples(text)) for text in (EXAMPLES, GENERATE_EXAMPLES, CHAT_EXAMPLES)] == [3, 6, 2]
    assert set(SHOWN) > POCKET


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("command", sorted(set(SHOWN) - POCKET))
def test_a_shown_command_works(checkpoint, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.png", "cat.jpg"):
        shutil.copy(ROOT / "examples" / "cat.jpg", name)
    # A shell finds the arguments and the input; the command runs here, where the model's programs are compiled.
    function = "idefics-jax() { printf '%s\\0' \"$@\" > arguments; cat > input; }"
    command = command.replace(PUBLISHED, str(checkpoint)).replace("DIR", str(checkpoint))
    subprocess.run(["bash", "-c", f"{function}\n{command}"], check=True, stdin=subprocess.DEVNULL)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((Path("input").read_text()).encode())))
    arguments = Path("arguments").read_text().split("\0")[:-1]
    status = main([*arguments, *FEW])
    out, err = capsys.readouterr()
    assert status == 0, err
    assert out.strip() or ("chat" in command and "printf" not in command)


def test_the_readme_s_main_command_works(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    main_command = re.search(r"^python3 -m venv .*idefics-jax generate.*$", README, re.MULTILINE)[0]
    venv, install, generate = main_command.split(" && ")
    assert (venv, install) == ("python3 -m venv .venv", ".venv/bin/pip install -q .")  # .ci/run runs the line as it is
    assert main(shlex.split(generate)[1:]) == 0
    said = capsys.readouterr()
    assert said.out == "guitar\n"
    assert "(`guitar`)" in README
    assert said.err.splitlines()[0].startswith("Using the pocket model")


def test_the_readme_s_python_works(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    # Computing in float32 takes the programs of the commands.
    copy = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    config = json.loads((copy / "config.json").read_text()) | {"torch_dtype": "float32"}
    (copy / "config.json").write_text(json.dumps(config))
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(block.replace(PUBLISHED, str(copy)).replace("max_new_tokens=64", "max_new_tokens=12"), {})
    out = capsys.readouterr().out
    assert re.match(r"User: +What is in this picture\? *\nAssistant:.", out)


def test_the_readme_s_files_and_links_exist():
    for name in re.findall(r"\]\(([^):]+)\)", README) + re.findall(
        r"`(examples/\S*?|idefics_jax/\S+?|tests/\S+?)`", README
    ):
        assert (ROOT / name).exists(), name
