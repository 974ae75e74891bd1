"""The package as it is installed: its list of folders, its layers, and a wheel that runs from anywhere."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from edgekit.extras import BROUGHT_BY
from tests.conftest import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="reading pyproject.toml needs tomllib (Python 3.11) or tomli")

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
STAGES = ("models", "compress", "export", "bench")

# The table in CONTRIBUTING.md. A stage may import itself and these.
MAY_IMPORT: Mapping[str, frozenset[str]] = {
    "": frozenset(),  # the modules directly in edgekit/
    "models": frozenset({""}),
    "compress": frozenset({"", "models", "export"}),  # export: compress/slim alone, see below
    "export": frozenset({"", "models"}),
    "bench": frozenset({"", "models", "export"}),
    "cli": frozenset({"", *STAGES, "demo"}),
    "demo": frozenset({"", *STAGES}),
}


def source_files() -> Iterator[tuple[str, Path]]:
    """Yield (stage, file) of every module of the package."""
    for stage in STAGES:
        for path in sorted((REPOSITORY / stage).rglob("*.py")):
            yield stage, path
    for path in sorted((REPOSITORY / "edgekit").rglob("*.py")):
        below = path.relative_to(REPOSITORY / "edgekit").parts
        yield (below[0] if len(below) > 1 else ""), path


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of every import in a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            assert node.module is not None
            yield node.lineno, node.module
            if node.module == "edgekit":
                yield from ((node.lineno, f"edgekit.{alias.name}") for alias in node.names)


def stage_of(module: str) -> str | None:
    """Return the stage of one of our modules, "" for those directly in edgekit/; None for other packages."""
    parts = module.split(".")
    if parts[0] != "edgekit" or len(parts) < 2:
        return None
    return parts[1] if parts[1] in MAY_IMPORT else ""


def test_layers_import_downwards_only() -> None:
    wrong = []
    for stage, path in source_files():
        if path.name == "__main__.py":  # `python -m edgekit` is the command line itself
            continue
        for line, module in imports(path):
            target = stage_of(module)
            if target is not None and target != stage and target not in MAY_IMPORT[stage]:
                wrong.append(f"{path.relative_to(REPOSITORY)}:{line}: {stage or 'edgekit'} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_only_slim_looks_at_what_is_exported() -> None:
    """It trains for what the exported files will do; the rest of compress/ knows nothing of files."""
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line}: {module}"
        for stage, path in source_files()
        if stage == "compress" and path.parent.name != "slim"
        for line, module in imports(path)
        if stage_of(module) == "export"
    ]
    assert not wrong, "\n".join(wrong)


def test_every_import_of_ours_is_spelled_edgekit() -> None:
    bare = [
        f"{path.relative_to(REPOSITORY)}:{line}: {module}"
        for _, path in source_files()
        for line, module in imports(path)
        if module.split(".")[0] in STAGES
    ]
    assert not bare, "\n".join(bare)


def test_modules_that_run_artifacts_load_no_torch() -> None:
    """`verify` and `bench` run on a device without torch: what they import at the top, and what that imports, too."""
    modules = ("export.verify.bundle", "export.runtimes", "cli.verify", "bench.run", "bench.devices.naming")
    code = f"import sys, {', '.join(f'edgekit.{name}' for name in modules)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_absent_package_is_of_the_extra_that_brings_it() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    for module, (distribution, extra) in BROUGHT_BY.items():
        named = {Requirement(requirement).name for requirement in extras[extra]}
        assert distribution in named, f"{module}: {extra}"
    optional = {Requirement(r).name for name in extras if name not in ("all", "dev") for r in extras[name]} - {
        "edgekit"
    }
    assert optional == {distribution for distribution, _ in BROUGHT_BY.values()}


def package_folders() -> set[str]:
    found = set()
    for stage in STAGES:
        for path in (REPOSITORY / stage).rglob("*"):
            if path.suffix in (".py", ".yaml", ".html", ".j2") and "__pycache__" not in path.parts:
                found.add("edgekit." + ".".join(path.parent.relative_to(REPOSITORY).parts))
    for path in (REPOSITORY / "edgekit").rglob("*.py"):
        found.add(".".join(path.parent.relative_to(REPOSITORY).parts))
    return found


def test_the_list_of_packages_is_the_tree() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == package_folders()


def test_edgekit_itself_is_a_namespace() -> None:
    """With an __init__.py the folder would shadow the installed package when run from the repository's root."""
    assert not (REPOSITORY / "edgekit" / "__init__.py").exists()
    assert (REPOSITORY / "edgekit" / "py.typed").is_file()


def test_nothing_is_left_to_be_done_later() -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError")
    left = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for _, path in source_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if words.search(line)
    ]
    assert not left, "\n".join(left)


def test_every_console_script_and_extra_is_there() -> None:
    module, _, name = PROJECT["project"]["scripts"]["edgekit"].partition(":")
    assert hasattr(__import__(module, fromlist=[name]), name)
    extras = PROJECT["project"]["optional-dependencies"]
    everything = set(re.findall(r"[a-z]+", extras["all"][0].partition("[")[2]))
    assert everything == set(extras) - {"all", "dev", "tensorflow"}


def run_python(*args: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from a copy of the sources and install it, alone, into a folder of its own."""
    if find_spec("setuptools") is None or find_spec("pip") is None:
        pytest.skip("building a wheel without network needs setuptools and pip in this environment")
    root = tmp_path_factory.mktemp("wheel")
    sources = root / "sources"  # a copy: building in place would leave build/ and *.egg-info in the checkout
    for folder in ("edgekit", *STAGES):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                target = sources / path.relative_to(REPOSITORY)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (REPOSITORY / name).is_file():
            (sources / name).write_bytes((REPOSITORY / name).read_bytes())
    quiet = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    built = run_python("-m", "pip", "wheel", *quiet, "--no-build-isolation", "-w", root / "dist", sources, cwd=root)
    assert built.returncode == 0, built.stderr
    (wheel,) = (root / "dist").glob("edgekit-*.whl")
    done = run_python("-m", "pip", "install", *quiet, "--target", root / "site", wheel, cwd=root)
    assert done.returncode == 0, done.stderr
    return root / "site"


PROBE = """
import json, sys
from pathlib import Path
site = sys.argv[1]
sys.path.insert(0, site)
# the editable install of the checkout, if any, must not answer in the wheel's place
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path[:] = [entry for entry in sys.path if "editable" not in entry.lower()]
import edgekit.compress.recipe, edgekit.cli.main, edgekit.models.prompts
modules = [edgekit.compress.recipe, edgekit.cli.main, edgekit.models.prompts]
assert all(Path(module.__file__).is_relative_to(site) for module in modules), [m.__file__ for m in modules]
names = edgekit.compress.recipe.recipe_names()
recipes = {name: edgekit.compress.recipe.load_recipe(name).name for name in names}
code = edgekit.cli.main.run(["--help"])
print(json.dumps({"recipes": recipes, "code": code}))
"""


def test_a_wheel_runs_from_any_folder(installed: Path, tmp_path: Path) -> None:
    done = run_python("-c", PROBE, installed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    shipped = {path.stem for path in (REPOSITORY / "compress" / "recipes").glob("*.yaml")}
    assert result == {"recipes": {name: name for name in shipped}, "code": 0}
    assert "Commands:" in done.stdout
    shown = run_python("-m", "edgekit", "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert shown.returncode == 0, shown.stderr
    assert "distill" in shown.stdout


def test_a_wheel_holds_every_file_of_the_tree_and_no_tests(installed: Path) -> None:
    shipped = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    for stage in STAGES:
        for path in (REPOSITORY / stage).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"edgekit/{path.relative_to(REPOSITORY).as_posix()}" in shipped
    assert "edgekit/py.typed" in shipped
    assert not [name for name in shipped if name.startswith(("tests/", "models/", "compress/", "export/", "bench/"))]
