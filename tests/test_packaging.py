"""pyproject.toml, environment.yml and requirements.lock say the same; the repository holds what it should."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def lock():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def environment():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    return next(entry["pip"] for entry in entries if isinstance(entry, dict))


@pytest.mark.parametrize("text", [*PROJECT["dependencies"], *(t for extra in EXTRAS.values() for t in extra)])
def test_each_requirement_is_pinned_to_a_version_that_it_admits(text):
    requirement, pins = Requirement(text), {normal(name): version for name, version in lock().items()}
    assert normal(requirement.name) in pins, f"{requirement.name} is not in requirements.lock: run `make lock`"
    assert requirement.specifier.contains(pins[normal(requirement.name)], prereleases=True)


def test_the_environment_names_the_locked_versions():
    pins = lock()
    named = dict(line.split("==") for line in environment() if "==" in line)
    needed = "jupyter-book papermill torch torchvision timm scikit-learn pandas matplotlib seaborn pillow"
    assert set(named) >= set(needed.split())
    assert {name: pins[name] for name in named} == named


def test_the_environment_and_the_makefile_install_known_extras_under_the_lock():
    editable = next(line for line in environment() if line.startswith("--editable"))
    made = re.search(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert {*re.search(r"\[(.*)\]", editable)[1].split(","), *made.split(",")} <= set(EXTRAS)
    assert "--constraint requirements.lock" in environment()


def test_the_running_environment_is_the_locked_one():
    from importlib import metadata

    wrong = {
        name: (metadata.version(name), version)
        for name, version in lock().items()
        if name in {"torch", "timm", "papermill", "snakemake", "jupyter-book", "pandas", "numpy"}
        and metadata.version(name).split("+")[0] != version
    }
    if wrong and sys.version_info[:2] != (3, 11):
        pytest.skip(f"the lock is for Python 3.11; here: {wrong}")
    assert not wrong


def tracked(pattern):
    found = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", pattern], capture_output=True, text=True)
    return [name for name in found.stdout.split("\0") if name]


def test_committed_notebooks_carry_no_outputs_and_have_typed_parameters():
    notebooks = tracked("notebooks/*.ipynb")
    if not notebooks:
        pytest.skip("not a git checkout")
    for name in notebooks:
        cells = json.loads((ROOT / name).read_text())["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), name
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        assert len(tagged) == 1, f"{name} needs exactly one cell tagged `parameters`"
        lines = "".join(tagged[0]["source"]).splitlines()
        assert all(re.match(r"\w+: \w+(\[.*\])? = .*#", line) for line in lines), f"{name}: {lines}"


def test_the_sources_are_formatted():
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--check", str(ROOT)], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_repository_holds_no_images_of_patients():
    raster = [name for kind in ("*.jpg", "*.jpeg", "*.webp", "*.dcm") for name in tracked(kind)]
    assert raster == []


def test_one_stage_is_one_notebook_one_rule_one_module(tmp_path):
    from medq import stages

    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--list-rules"]
    env = dict(os.environ, MEDQ_RUNS=str(tmp_path), PYTHONPATH=str(ROOT))
    listed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert set(stages.STAGES) <= set(listed.stdout.split()), listed.stderr
    assert set(stages.STAGES) == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    for stage in stages.STAGES:
        assert (ROOT / "medq" / f"{stage}.py").is_file() or (ROOT / "medq" / stage / "__init__.py").is_file(), stage


def test_book_settings_stand_at_the_top_and_are_linked_into_the_book():
    for name in ("_config.yml", "_toc.yml"):
        link = ROOT / "book" / name
        assert link.is_symlink() and link.resolve() == ROOT / name
