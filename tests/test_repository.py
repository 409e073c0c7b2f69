"""What the tree promises about itself: who imports whom, what is documented, what is pinned."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from streamlearn.config import load_job, settings
from streamlearn.metrics import METRICS, PREFIX

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "streamlearn"
MODULES = sorted(PACKAGE.rglob("*.py"))
LINES_MAX = 600

# What typer brings along and explains itself.
TYPERS_OWN = ("--help", "--install-completion", "--show-completion")

# Whom the modules of a package may import of ours, themselves always. Types count, too.
VOCABULARY = (
    "streamlearn.messages",
    "streamlearn.errors",
    "streamlearn.config",
    "streamlearn.protocol",
    "streamlearn.columns",
    "streamlearn.topic_columns",
    "streamlearn.embeddings",
    "streamlearn.binary",
    "streamlearn.marks",
)
MAY_IMPORT = {
    "streamlearn.net": (
        *VOCABULARY,
        "streamlearn.compute.kernels.wire",
        "streamlearn.compute.kernels.bags",
        "streamlearn.compute.kernels.stuffing",
    ),
    "streamlearn.shards": (*VOCABULARY, "streamlearn.compute.kernels"),
    "streamlearn.online": (*VOCABULARY, "streamlearn.compute.kernels"),
    "streamlearn.strata": (
        *(*VOCABULARY, "streamlearn.compute.kernels", "streamlearn.shards", "streamlearn.online"),
        *("streamlearn.model", "streamlearn.privacy"),
    ),
    "streamlearn.topics": (
        *(*VOCABULARY, "streamlearn.compute.kernels", "streamlearn.shards", "streamlearn.online"),
        "streamlearn.model",
    ),
    "streamlearn.compute": VOCABULARY,
    "streamlearn.compute.kernels": (),
    "streamlearn.messages": (),
    "streamlearn.errors": (),
}
# Who waits, and may therefore know asyncio; everything else is a function of its inputs.
MAY_WAIT = (
    "streamlearn.net.transport",
    "streamlearn.net.client",
    "streamlearn.net.server",
    "streamlearn.net.http",
    "streamlearn.net.mirror",
    "streamlearn.net.network",
    "streamlearn.net.sources",
    *(
        f"streamlearn.cluster.{module}"
        for module in (
            *("daemon", "shard_host", "shard_node", "follower_host", "follower_node", "remote"),
            *(
                "dense_member",
                "flight",
                "worker",
                "worker_node",
                "image_files",
                "intake",
                "engines",
                "supervisor",
            ),
        )
    ),
    "streamlearn.compute.pool",
    "streamlearn.compute.cuda",
    "streamlearn.learner",
    "streamlearn.signals",
    "streamlearn.todo",
    "streamlearn.training",
    "streamlearn.preparing",
    "streamlearn.further",
    "streamlearn.scoring",
    "streamlearn.recommending",
    "streamlearn.replay",
    "streamlearn.node",
    "streamlearn.cli",
)
# The wiring, top first: nobody imports what stands above it.
WIRING = (
    "streamlearn.__main__",
    "streamlearn.cli",
    "streamlearn.cluster_cli",
    "streamlearn.node",
    "streamlearn.cluster.supervisor",
    "streamlearn.cluster.follower_node",
    "streamlearn.cluster.shard_node",
    "streamlearn.cluster.worker_node",
    "streamlearn.replay",
    "streamlearn.recommending",
    "streamlearn.scoring",
    "streamlearn.training",
    "streamlearn.preparing",
    "streamlearn.further",
    "streamlearn.sweeping",
    "streamlearn.telemetry",
    "streamlearn.learner",
)


def _name(path: Path) -> str:
    """Return a module's dotted name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _under(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _imports(path: Path) -> set[str]:
    """Return all that a module imports, wherever in it, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            # `from package import module` names a module as much as `import package.module` does
            found.update(
                f"{module}.{alias.name}" if _is_module(f"{module}.{alias.name}") else module
                for alias in node.names
            )
    return found


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


IMPORTS = {_name(path): _imports(path) for path in MODULES}


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_module_imports_only_what_its_package_may(module: str) -> None:
    rules = [package for package in MAY_IMPORT if _under(module, package)]
    if not rules:
        return
    package = max(rules, key=len)
    allowed = (package, *MAY_IMPORT[package])
    wrong = {
        name
        for name in IMPORTS[module]
        if _under(name, "streamlearn")
        and name != "streamlearn"
        and not any(_under(name, one) for one in allowed)
    }
    assert not wrong


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_nobody_imports_the_wiring_above_it(module: str) -> None:
    own = WIRING.index(module) if module in WIRING else len(WIRING)
    assert not {name for name in IMPORTS[module] if name in WIRING[:own]}


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_only_those_who_wait_know_asyncio(module: str) -> None:
    if any(_under(module, one) for one in MAY_WAIT):
        return
    assert not {name for name in IMPORTS[module] if _under(name, "asyncio")}


@pytest.mark.parametrize("package", ["streamlearn.online", "streamlearn.compute.kernels"])
def test_what_decides_has_neither_clock_nor_dice_nor_environment(package: str) -> None:
    wrong = {
        (module, name)
        for module, imports in IMPORTS.items()
        if _under(module, package) and module != "streamlearn.compute.kernels"
        for name in imports
        if name in {"time", "random", "os", "socket"}
    }
    assert not wrong


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_module_is_short_enough_to_hold_one_noun(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= LINES_MAX


def _docs() -> str:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return "\n".join(page.read_text() for page in pages)


def test_every_setting_and_its_flag_is_documented() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    missing = [
        setting.path
        for setting in settings()
        if f"`{setting.name}`" not in page
        or (not setting.positional and f"`{setting.flag}`" not in page)
    ]
    assert not missing


def test_every_verb_and_option_is_documented() -> None:
    from streamlearn.cli import app

    docs = _docs()
    missing: list[str] = []

    def walk(command: object, words: str) -> None:
        for parameter in command.params:  # type: ignore[attr-defined]
            longest = max((o for o in parameter.opts if o.startswith("--")), key=len, default="")
            if longest and longest not in docs and longest not in TYPERS_OWN:
                missing.append(f"{words} {longest}")
        for name, child in getattr(command, "commands", {}).items():
            if f"{words} {name}" not in docs:
                missing.append(f"{words} {name}")
            walk(child, f"{words} {name}")

    walk(typer.main.get_command(app), "streamlearn")
    assert not missing


def test_every_metric_is_documented_and_none_other() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `(streamlearn_[a-z0-9_]+)`", page, re.MULTILINE))
    assert documented == {f"{PREFIX}{metric.name}" for metric in METRICS}


def test_every_make_target_is_documented() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert targets
    readme = (ROOT / "README.md").read_text()
    assert not [name for name in targets[1].split() if f"make {name}" not in readme]


def _mapped() -> set[str]:
    """Return the paths that the README's map of the tree names."""
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"## The tree\n.*?```\n(.*?)```", readme, re.DOTALL)
    assert block
    paths: set[str] = set()
    folders: list[tuple[int, str]] = []
    for line in block[1].splitlines():
        names, _, _ = line.strip().partition("   ")
        indent = len(line) - len(line.lstrip())
        while folders and folders[-1][0] >= indent:
            folders.pop()
        before = folders[-1][1] if folders else ""
        for name in names.split():
            paths.add(before + name.rstrip("/"))
            if name.endswith("/"):
                folders.append((indent, before + name))
    return paths


def _ways_to_name(path: Path) -> set[str]:
    """Return the paths either of which shows a module on the map: its own, or its folder's."""
    own = path.relative_to(ROOT)
    folders = {own.parent, own.parent.parent} - {Path("streamlearn"), Path()}
    return {str(own), *(str(folder) for folder in folders)}


def test_map_of_the_tree_names_only_what_is_there() -> None:
    assert not {path for path in _mapped() if not (ROOT / path).exists()}


def test_map_of_the_tree_names_every_module() -> None:
    mapped = _mapped()
    missing = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if path.name != "__init__.py" and not _ways_to_name(path) & mapped
    }
    assert not missing


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    dead = {
        (page.name, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    }
    assert not dead


def test_everything_make_installs_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    made = [text for name in ("dev", "bench", "deep", "onnx") for text in extras[name]]
    wanted = [*project["dependencies"], *made, "setuptools"]
    pins = [
        Requirement(line)
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    exact = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in pins
        if str(pin.specifier).startswith("==")
    }
    assert len(exact) == len(pins)
    for text in wanted:
        requirement = Requirement(text)
        version = exact.get(canonicalize_name(requirement.name))
        assert version, f"{text} is not pinned"
        assert requirement.specifier.contains(version), f"{text}, pinned to {version}"


def test_the_demo_finds_its_log_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    job = load_job(PACKAGE / "data" / "flights.toml").job
    assert [Path(uri).resolve() for uri in job.source.uri] == [
        PACKAGE / "data" / "flights_sample.csv.gz"
    ]


def test_the_gate_runs_what_a_developer_runs() -> None:
    gate = (ROOT / ".ci" / "run").read_text()
    assert "make check" in gate
    assert "make test" in gate
