"""Notebooks that no small batch runs: of a model that an engine refuses, and of other runtimes."""

import ast
import json

import pytest

from medq import artefacts, paths, peers, show
from medq.quantize import dynamic, static
from medq.quantize.engines import Unsupported

CHANGES = {
    "train": {"epochs": 1},
    "subset": {"train": 64, "held_out": 32},
    "image_size": 32,
    "calibration": {"images": 16, "sizes": [8, 16]},
    "latency": {"seconds": 0.1, "image_size": 32},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("refused")


def execute(name, **parameters):
    """Run the code cells of a notebook in this process, as a reader does; its variables."""
    content = json.loads((paths.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    first, *rest = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    variables = {"display": repr}
    exec(first, variables)
    variables |= {key: value for key, value in parameters.items() if key in variables}
    for source in rest:
        tree = ast.parse(source)
        shown = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), variables)
        value = shown and eval(compile(shown, name, "eval"), variables)
        getattr(value, "_repr_html_", value.__repr__)()
    return variables


@pytest.mark.parametrize("place", ["fold0", "seed42/fold1"])
def test_a_cell_is_shown_beside_the_fp32_cell_of_its_seed_and_fold(tmp_path, monkeypatch, place):
    asked = []
    monkeypatch.setattr(show, "_predictions", lambda folder: asked.append(folder))
    monkeypatch.setattr(show.figures, "reliability", lambda *_, **__: None)
    monkeypatch.setattr(show, "picture", lambda figure: figure)
    cell = paths.Cell.at("mine", f"BrainMRI/resnet18/ptq-fbgemm/{place}")
    folder = tmp_path / "mine" / str(cell)
    artefacts.write_json(folder / "manifest.json", {"cell": vars(cell)})
    show.before_and_after(folder)
    assert asked == [tmp_path / "mine" / str(cell.of("fp32")), folder]


@pytest.mark.parametrize(
    "backbone, names",
    [
        ("resnet18", ("quantize", "ablation", "calibration_size", "diagnosis", "remedies")),
        ("mobilevit_xxs", ("quantize", "diagnosis", "remedies")),
    ],
)
def test_a_model_that_an_engine_refuses(runs, monkeypatch, backbone, names):
    def refuse(*_, **__):
        raise Unsupported("the engine refuses an operator")

    monkeypatch.setenv("MEDQ_RUNS", str(runs))
    monkeypatch.setenv("MEDQ_THREADS", "1")
    for module, function in ((static, "prepare"), (static, "convert"), (dynamic, "convert")):
        monkeypatch.setattr(module, function, refuse)
    for name in names:
        regime = {"regime": "ptq-fbgemm", "backbone": backbone, "changes": CHANGES}
        record = artefacts.record(execute(name, **regime)["folder"])
        assert record["status"] == "unsupported" and "the engine refuses an operator" in record["reason"], name


def test_other_runtimes_are_shown(runs, monkeypatch):
    monkeypatch.setenv("MEDQ_RUNS", str(runs))
    monkeypatch.setenv("MEDQ_THREADS", "1")
    monkeypatch.setattr(peers, "RUNTIMES", peers.RUNTIMES[:1])
    assert len(execute("peers", changes=CHANGES)["table"]) == 2  # batch sizes
