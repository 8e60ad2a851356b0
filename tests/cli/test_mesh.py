"""`--mesh` and several processes: the same answers, and what is said of sizes that do not fit."""

import pytest

from tests.support.commands import NEW_TOKENS, PROMPT, check_sentence, two_processes


def test_the_answer_is_the_same_on_a_mesh(generate, images):
    given = {"prompt": ("--prompt", "User:<image>What is this?"), "images": images[:1]}  # as in an example of --help
    assert generate("--mesh", "fsdp=2,tensor=4", **given) == generate(**given)


@pytest.mark.slow
def test_a_conversation_is_the_same_on_a_mesh(chat):
    lines = ("Hello.", "And now?")
    assert chat(*lines, mesh="data=-1, tensor=2")[0] == chat(*lines)[0]


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("fsdp=2,model=4", "there is no axis 'model'; the axes are data, fsdp, tensor"),
        ("fsdp", "'fsdp' must be fsdp= and a whole number, or -1 for the rest"),
        ("fsdp=two", "'fsdp=two' must be fsdp= and a whole number"),
        ("fsdp=0", "'fsdp=0' must be fsdp= and a whole number"),
        ("fsdp=2,fsdp=4", "fsdp is given twice"),
        ("fsdp=-1,tensor=-1", "only one axis can be -1"),
    ],
)
def test_meshes_that_say_nothing(mesh, message, generate, capsys):
    with pytest.raises(SystemExit, match="2"):
        generate("--mesh", mesh)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mesh", "fsdp=2,tensor=2"), "data=1, fsdp=2, tensor=2 does not use 8 devices"),
        (("--process", "0"), "--processes and --process need --coordinator"),
        (("--coordinator", "localhost:1"), "--coordinator needs --mesh"),
        (("--mesh", "tensor=-1", "--coordinator", "localhost:1"), "needs --processes and --process"),
        (
            ("--mesh", "tensor=-1", "--coordinator", "localhost:1", "--processes", "2", "--process", "2"),
            "--process is 2; it counts from 0 to 1",
        ),
    ],
)
def test_options_that_do_not_fit(arguments, message, generate):
    check_sentence(generate(*arguments, status=1), message)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [[], ["--stream"]], ids=str)
def test_of_two_processes_the_first_answers(stream, generate, checkpoint, images):
    given = [part for path in images for part in ("--image", path)]
    arguments = [*given, "--max-new-tokens", NEW_TOKENS, "--mesh", "fsdp=2,tensor=4", *stream]
    first, second = two_processes("generate", "--model", checkpoint, "--prompt", PROMPT, *arguments)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert (first.out, second.out) == (generate(), "")


@pytest.mark.slow
def test_a_mistake_in_the_first_process_ends_both(checkpoint):
    given = ["--model", checkpoint, "--prompt", PROMPT, *["--image", "missing.jpg"] * 2]
    first, second = two_processes("generate", *given, "--mesh", "tensor=-1")
    assert first.status == 1
    assert "missing.jpg" in first.err.splitlines()[-1]
    assert second.status != 0
