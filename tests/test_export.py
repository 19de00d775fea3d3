import json
import re
import subprocess
import sys

import numpy as np
import pytest
from fixtures import resnet
from fixtures.resnet import needs

from medq import evaluate, export, metrics, params as profiles, peers, remedies
from medq.cli import main
from medq.errors import UserError
from medq.quantize.stage import float_model

needs_onnx = needs("onnx", "onnxruntime")

ALONE = """
import json, sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
images = numpy.load(sys.argv[2])
numpy.save(sys.argv[3], session.run(None, {session.get_inputs()[0].name: images})[0])
facts = session.get_modelmeta().custom_metadata_map
others = "torch" in sys.modules or "medq" in sys.modules
print(json.dumps([facts["classes"], session.get_inputs()[0].type, others]))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(params, cell, partition) of a ResNet-18 trained for a moment."""
    folder, changes = tmp_path_factory.mktemp("runs"), {"calibration": {"images": 32, "sizes": [16]}}
    with resnet.trained(folder, export, **changes) as (params, cell):
        yield params, cell, resnet.partition(params, cell.dataset, 0)


@needs_onnx
def test_the_exported_file_gives_the_same_probabilities_to_onnxruntime_alone(trained, tmp_path, capsys):
    params, cell, part = trained
    assert main(["export", str(cell.folder), str(tmp_path / "out"), "--temperature", "1.5"]) == 0
    assert "model.onnx" in capsys.readouterr().out
    held = part.images[part.held_out]
    np.save(tmp_path / "images.npy", np.ascontiguousarray(held.transpose(0, 3, 1, 2)))
    said = subprocess.run(
        [sys.executable, "-c", ALONE, tmp_path / "out" / "model.onnx", tmp_path / "images.npy", tmp_path / "p.npy"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    ).stdout
    classes, kind, others = json.loads(said)
    assert json.loads(classes) == list(part.classes) and kind == "tensor(uint8)" and others is False
    logarithm = np.log(evaluate.probabilities(float_model(params, cell, part), held).astype(float)) / 1.5
    expected = np.exp(logarithm) / np.exp(logarithm).sum(1, keepdims=True)
    assert np.abs(np.load(tmp_path / "p.npy") - expected).max() <= 1e-4
    facts = json.loads((tmp_path / "out" / export.FACTS).read_text())
    assert facts["temperature"] == 1.5 and facts["largest_difference"] <= 1e-4 and facts["same_decision"] == 1
    card = (tmp_path / "out" / export.CARD).read_text()
    for part in ("glioma, meningioma", "phantoms", facts["checkpoint_sha256"], "1.5 (set by hand)"):
        assert part in card


@needs_onnx
@pytest.mark.parametrize("form", ["onnx", pytest.param("openvino", marks=needs("openvino", "nncf"))])
def test_int8_files_stay_close_and_are_smaller(trained, tmp_path, form):
    _, cell, part = trained
    facts = export.export(cell.folder, tmp_path, format=form, precision="int8", temperature="fit")
    assert 1e-6 < facts["largest_difference"] < 0.2 and facts["same_decision"] > 0.8 and facts["size_mb"] < 44 / 3
    p = export.load(tmp_path / facts["file"])(part.images[part.held_out])
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    assert sorted(f.suffix for f in tmp_path.iterdir()) == sorted(
        [".json", ".md", *([".onnx"] if form == "onnx" else [".xml", ".bin"])]
    )


@needs_onnx
def test_a_fitted_temperature_comes_from_images_that_were_not_trained_on(trained, tmp_path):
    params, cell, part = trained
    facts = export.export(cell.folder, tmp_path, temperature="fit")
    labels, held = part.labels[part.held_out], part.images[part.held_out]
    p = evaluate.probabilities(float_model(params, cell, part), held)
    assert facts["temperature"] == pytest.approx(remedies.fit_temperature(np.log(p), labels), rel=1e-3)
    assert facts["temperature_fitted"] and facts["largest_difference"] <= 1e-4
    crossed, _ = remedies.tempered(p, labels, remedies.halves(part, params.seed))
    assert facts["metrics"]["brier"] == pytest.approx(metrics.METRICS["brier"](labels, crossed), abs=1e-4)
    assert "held-out images; the scores" in (tmp_path / export.CARD).read_text()


def card(spec):
    """The model card of a made-up model for a dataset of two classes."""
    scores = metrics.summary(np.arange(8) % 2, np.full((8, 2), 0.5), spec.classes)
    known = "backbone precision dataset weights regime fold profile medq checkpoint_sha256 held_out_images".split()
    facts = dict.fromkeys(known, "fp32") | {"classes": list(spec.classes), "input": {"name": "images", "what": "x"}}
    facts |= {"output": {"name": "p"}, "image_size": 32, "temperature": 1.0, "temperature_fitted": False}
    facts |= {"largest_difference": 0.0, "same_decision": 1.0, "file": "model.onnx", "weights": "own_weights.pt"}
    return export.card(facts, scores, scores, spec)


@pytest.mark.parametrize("name", ["A|B", "<b>", "#1 `x`", "a*b_c", "[x](y)"])
def test_names_of_classes_do_not_break_the_card(name):
    named = {"classes": (name, "c"), "titles": {}, "title": name}
    spec = profiles.datasets()["phantom-BrainMRI"].model_copy(update=named)
    text = card(spec)
    rows = re.findall(r"^\|.*\|$", text, re.M)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4} and len(rows) == 8 + 4
    (row,) = (row for row in rows if row.startswith(f"| {export.in_table(name)} |"))
    assert re.sub(r"\\(.)", r"\1", re.split(r"(?<!\\)\|", row)[1].strip()) == name  # as GitHub shows the cell
    assert r"initial weights own\_weights.pt," in text  # where Markdown resolves the escape
    assert f"in this order: {export.plain(name)}, c." in text and not re.search(r"{[{%]", text)


@needs_onnx
def test_mistakes_end_in_a_sentence_and_write_nothing(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for cell, output, temperature, said in (
        (trained[1].folder, "out", "0", "give a number above 0"),
        (trained[1].folder, "out", "warm", "--temperature warm: "),
        (trained[1].folder, "out", "nan", "above 0"),
        (trained[1].folder, "file", "1", "cannot be a folder"),
        (tmp_path, "out", "1", "not a finished cell"),
    ):
        assert main(["export", str(cell), str(tmp_path / output), "--temperature", temperature]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert (tmp_path / "file").read_text() == "mine"


UNKNOWN = "Own images, whose `source` params/datasets.yaml does not name"


@pytest.mark.parametrize(
    "changes, said",
    [
        ({}, "generated by medq"),
        ({"layout": "folders"}, f"{UNKNOWN}; licence: not recorded"),
        ({"layout": "folders", "licence": "CC0"}, f"{UNKNOWN}; licence: CC0"),
        ({"layout": "folders", "source": "https://example.org"}, "https://example.org; licence: see the source"),
    ],
)
def test_a_model_card_says_where_the_images_are_from(changes, said):
    plain = {"title": "Own images", "classes": ("a", "b"), "source": None, "licence": None}
    spec = profiles.datasets()["phantom-BrainMRI"].model_copy(update=plain | changes)
    assert f"- Data: {said}. The held-out images" in card(spec)


def test_a_missing_package_is_named_with_the_way_to_it(trained, tmp_path, monkeypatch):
    absent = peers.Runtime("onnxruntime", "fp32", ".onnx", None, None, ("surely_not_installed",))
    monkeypatch.setattr(peers, "RUNTIMES", (absent,))
    with pytest.raises(UserError, match="surely_not_installed.*pip install"):
        export.export(trained[1].folder, tmp_path)


@needs_onnx
def test_an_export_that_computes_something_else_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="do not use it"):
        export.export(trained[1].folder, tmp_path)
    assert not (tmp_path / export.CARD).exists()
