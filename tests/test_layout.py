"""Imports go down: from programs to the model, from the model to kernels, and never up again."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

import idefics_jax

ROOT = Path(idefics_jax.__file__).parent
#: Folders and files of the library, those that import others first.
ORDER = [
    "__main__",
    "cli",
    "evaluation",
    "planning",
    "cost",
    "model",
    "generation",
    "checkpoints",
    "nn",
    "kernels",
    "parallel",
    "data",
    "processing",
    "generation_config",
    "config",
    "config_json",
    "pocket",
    "utils",
]
#: Imports against the order, each within a function or for type checkers alone.
BACK = {("config_json", "config")}


def parts_of(file: Path) -> tuple[str, ...]:
    relative = file.relative_to(ROOT.parent).with_suffix("")
    return relative.parts[:-1] if relative.name == "__init__" else relative.parts


def imports(file: Path) -> Iterator[str]:
    """Yield what a file imports of the library, wherever in the file: the folder, or the file beside the folders."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            package = ".".join(parts_of(file)[: -1 if file.name != "__init__.py" else None])
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "idefics_jax" else [module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            library, _, rest = name.partition(".")
            if library == "idefics_jax" and rest.split(".")[0] in ORDER:
                yield rest.split(".")[0]


@pytest.mark.parametrize("part", ORDER)
def test_imports_go_down(part):
    files = sorted((ROOT / part).rglob("*.py")) or [ROOT / f"{part}.py"]
    back = {(part, other) for file in files for other in imports(file) if ORDER.index(other) < ORDER.index(part)}
    assert back <= BACK


def test_every_file_has_its_place():
    found = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found - {"__init__"} == set(ORDER)
