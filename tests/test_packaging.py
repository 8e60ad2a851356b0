"""What a user installs: the wheel holds the library alone, needs what it declares, and never imports torch."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = {
    "pillow": "PIL",
    "universal-pathlib": "upath",
}  # what a distribution is imported as, where that is not its name
# Imported only by who reads such files: extras, what they bring, and what universal-pathlib brings.
OPTIONAL = {"datasets", "fsspec", "grain", "pyarrow"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        yield archive


def test_the_wheel_holds_the_library_alone(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {"idefics_jax/__init__.py", "idefics_jax/config.py", "idefics_jax/py.typed"} <= names
    assert {name.partition("/")[0] for name in names} == {"idefics_jax"}
    assert not any("__pycache__" in name for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_the_wheel_declares_its_command_and_extras_and_no_torch(wheel):
    def read(file):
        return wheel.read(next(name for name in wheel.namelist() if name.endswith(f".dist-info/{file}"))).decode()

    assert "idefics-jax = idefics_jax.__main__:main" in read("entry_points.txt")
    required = re.findall(r"^Requires-Dist: (.*)$", read("METADATA"), re.MULTILINE)
    assert not [requirement for requirement in required if re.match(r"torch|transformers", requirement)]
    assert {"jax[tpu]; extra == 'tpu'", "jax[cuda13]; extra == 'cuda'", "jax[cuda12]; extra == 'cuda12'"} <= set(
        required
    )
    assert "Requires-Python: <3.15,>=3.11" in read("METADATA")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Gives a run of the installed command, in a new environment that has this one's packages but not the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel.filename], check=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    packages = [path for path in sys.path if path.endswith("site-packages")]  # whose own .pth files do not count there
    (site / "packages.pth").write_text("\n".join(packages) + "\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments):
        command = [python.with_name("idefics-jax"), *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [python, "-c", "import idefics_jax; print(idefics_jax.__file__)"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(site)
    return run


@pytest.mark.slow
def test_the_installed_wheel_answers_trains_and_converts(installed):
    assert installed("--version").split() == ["idefics-jax", PROJECT["project"]["version"]]
    assert "--data.train" in installed("train", "--help")
    assert "--max-shard-size" in installed("convert", "--help")
    elephant = ROOT / "idefics_jax" / "pocket" / "pictures" / "elephant.png"
    assert "elephant" in installed("generate", "--image", elephant, "--question", "What animal is this?")


def imports(nodes):
    """Names of the top-level packages that these statements import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
    return names


def test_every_import_is_declared_and_every_dependency_imported():
    declared = {re.match(r"[\w-]+", item)[0].lower() for item in PROJECT["project"]["dependencies"]}
    imported, at_once = set(), set()
    for path in (ROOT / "idefics_jax").rglob("*.py"):
        tree = ast.parse(path.read_text())
        imported |= imports(ast.walk(tree))
        at_once |= imports(tree.body)
    third_party = imported - set(sys.stdlib_module_names) - {"idefics_jax"} - OPTIONAL
    assert not at_once & OPTIONAL
    assert third_party == {MODULES.get(name, name.replace("-", "_")) for name in declared}


USE = """
import sys

attempts = []

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "tensorflow"):
            attempts.append(name)

sys.meta_path.insert(0, Watch())
import importlib, pkgutil
import idefics_jax

for module in pkgutil.walk_packages(idefics_jax.__path__, "idefics_jax."):
    importlib.import_module(module.name)
from idefics_jax.config import IdeficsConfig

assert IdeficsConfig.from_dict(IdeficsConfig.tiny().to_dict()) == IdeficsConfig.tiny()
assert not attempts, attempts
assert not {"torch", "transformers", "tensorflow"} & set(sys.modules)
"""


def test_importing_and_using_the_library_never_imports_torch():
    run = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_readme_has_two_setup_commands_of_one_line():
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^python3 -m venv .*$", text, re.MULTILINE)
    main, tests = commands
    assert ".venv/bin/idefics-jax generate" in main
    assert tests.endswith(".venv/bin/pytest -n auto")
    assert not any(command.endswith("\\") for command in commands)
    assert "pip>=25.1" in tests or "-U pip" in tests, "--group needs a newer pip than Python 3.11 brings"


def test_the_constraints_satisfy_the_project():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [re.match(r"([\w-]+)==([\w.]+)", line) for line in lines if line and not line.startswith("#")]
    assert all(pins)
    pinned = {pin[1].lower().replace("_", "-") for pin in pins}
    groups = PROJECT["dependency-groups"]
    wanted = [*PROJECT["project"]["dependencies"], *groups["test"], *groups["torch"]]
    assert {re.match(r"[\w-]+", item)[0].lower() for item in wanted} <= pinned
