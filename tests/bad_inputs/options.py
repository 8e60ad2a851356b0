"""Options that no command accepts."""

from tests.bad_inputs.case import Case

ONE = ("generate", "--model", "{checkpoint}", "--prompt", "Hello.")
CASES = [
    Case("beams below one", (*ONE, "--num-beams", "0"), "--num-beams: '0' must be a whole number from 1 to 1000"),
    Case("no such directory", ("generate", "--model", "{d}/none", "--prompt", "Hello."), "none.*not a directory"),
    Case("mesh without sizes", (*ONE, "--mesh", "tensor"), "tensor"),
]
