"""Standard streams that are closed, or whose reader goes away."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, time
from idefics_jax.utils.console import prepare
prepare()
with open(sys.argv[1], "w") as file:
    for number in range(50):
        print("line", number, file=sys.stderr, flush=True)
        os.write(2, b"from a library\\n") if number > 10 else None
        time.sleep(0.002)
    print("done", file=file)
    print("answer")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("closed", ["2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams(tmp_path, closed):
    command = f'exec "$0" -c "$1" "$2" {closed}'
    arguments = ["sh", "-c", command, sys.executable, PROGRAM, str(tmp_path / "file")]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "done\n", "no message goes into a file that took the number"
    assert done.stdout == (b"" if "1>&-" in closed else b"answer\n")


def test_a_reader_that_goes_away(tmp_path):
    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path / "file")], stderr=writer) as process:
        os.close(writer)
        assert os.read(reader, 4) == b"line"
        os.close(reader)
        assert process.wait(timeout=60) == 0
    assert (tmp_path / "file").read_text() == "done\n"


def test_libraries_are_silent_and_we_are_not(tmp_path):
    program = (
        "import logging, sys, warnings\nfrom idefics_jax.utils.console import prepare\nprepare()\n"
        "warnings.warn('x2num')\nlogging.getLogger('absl').warning('metadata')\n"
        "logging.getLogger('train.metrics').warning('ours')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "ours\n"
