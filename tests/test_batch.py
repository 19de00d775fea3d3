"""The batch: what would run and why, who may run, how it is shown, and what is left in the end."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from fixtures.batch import ROOT, environment, snapshot, write_profile

from medq import artefacts, batch, cli, finetune, keys, notebook, params, paths, plan, results, slots, stages
from medq.datasets import DatasetWarning
from medq.errors import UserError
from medq.quantize.stage import study_name

FP32, PTQ = "phantom-BrainMRI/resnet18/fp32/fold0", "phantom-BrainMRI/resnet18/ptq-fbgemm/fold0"
DATA = "phantom-BrainMRI/data"


pytestmark = pytest.mark.timeout(1200)  # a batch may share the machine


def why(loaded, only=None):
    return {str(job): reason for job, _, reason in batch.stale(loaded, only)}


def run_batch(profile, runs, capsys):
    """Status and output of a batch that this process starts."""
    capsys.readouterr()
    code = cli.main(["batch", str(profile), "--results", str(runs / "results")])
    return code, "".join(capsys.readouterr())


# --- a whole batch, killed once on the way ----------------------------------------------------------------------------


def test_it_ends_well_and_shows_everything(killed):
    profile, runs, _, _, said, code = killed
    assert code == 0, said
    assert "parts done" in said and "\nfailed " not in said
    for name in (f"{DATA}/datasets.ipynb", f"{FP32}/finetune.ipynb", f"{PTQ}/quantize.ipynb", "collect/collect.ipynb"):
        notebook = nbformat.read(runs / "tiny" / name, as_version=4)
        outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
        assert outputs and not [o for o in outputs if o.output_type == "error"]
    found = results.load(runs / "results")
    assert set(found.cells["status"]) == {"done"} and len(found.cells) == 2
    assert "64 to train on" in found.banner()


def test_no_process_outlives_a_killed_batch(killed):
    _, _, below, left, _, _ = killed
    assert below and not left


def test_nothing_to_do_is_said_and_nothing_is_touched(killed, capsys, monkeypatch):
    profile, runs, *_ = killed
    monkeypatch.setenv("MEDQ_RUNS", str(runs))
    before = snapshot(runs)
    assert cli.main(["batch", str(profile), "--results", str(runs / "results")]) == 0
    assert capsys.readouterr().out.startswith("nothing to do: all 3 parts")
    assert snapshot(runs) == before


def test_dry_run_says_why_and_touches_nothing(finished, tmp_path, capsys):
    _, runs = finished
    changed = write_profile(tmp_path / "params", train={"epochs": 4, "learning_rate": 1e-3})
    before = snapshot(runs)
    assert cli.main(["batch", str(changed), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"{FP32}: train.epochs: 3 → 4" in out and "2 of 3 parts would run" in out
    assert snapshot(runs) == before


# --- what is said before anything starts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file, given",
    [
        ("w.pt", {"weights": "w.pt"}),
        ("models/resnet18.safetensors", {"weights": "models"}),
        ("w.pt", {"overrides": {"resnet18": {"weights": "w.pt"}}}),
    ],
)
def test_a_weights_file_replaced_under_its_name_makes_its_cells_stale(tmp_path, file, given):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"one")
    loaded = params.load(write_profile(tmp_path, **given))
    cell = paths.Cell("tiny", loaded.datasets[0], loaded.backbones[0], "fp32")
    first = keys.parameters(loaded, "finetune", cell)["weights"]
    path.write_bytes(b"two and more")
    again = keys.parameters(loaded, "finetune", cell)["weights"]
    assert first != again and str(tmp_path) not in first


def test_several_seeds_make_every_cell_once_for_each_and_studies_for_the_first(tmp_path):
    two = ["resnet18", "mobilevit_xxs"]
    overrides = {"mobilevit_xxs": {"seeds": [2]}}
    given = {"backbones": two, "controls": ["fp32-autocast"], "overrides": overrides, "study": {"latency": []}}
    loaded = params.load(write_profile(tmp_path, seeds=[1, 2], **given))
    jobs = {str(job): job for job in plan.jobs(loaded)}
    for regime in ("fp32", "ptq-fbgemm", "fp32-autocast"):
        found = {name for name in jobs if f"/{regime}/" in name}
        places = [("resnet18", 1), ("resnet18", 2), ("mobilevit_xxs", 2)]
        assert found == {f"phantom-BrainMRI/{b}/{regime}/seed{k}/fold0" for b, k in places}
    studies = [name for name in jobs if any(study in name for study in ("diagnosis", "ablation", "remedies"))]
    assert studies and all("seed1" in name if "resnet18" in name else "seed2" in name for name in studies)
    only = {str(job) for job in plan.jobs(loaded, {"seed": ["2"], "regime": ["ptq-fbgemm"]})}
    assert only == {DATA} | {f"phantom-BrainMRI/{b}/{r}/seed2/fold0" for b in two for r in ("fp32", "ptq-fbgemm")}
    one, other = (jobs[f"phantom-BrainMRI/resnet18/fp32/seed{k}/fold0"].cell for k in (1, 2))
    assert keys.key(keys.inputs(loaded, "finetune", one)) != keys.key(keys.inputs(loaded, "finetune", other))
    assert [finetune.schedule_of(loaded, cell, "cpu", "").seed for cell in (one, other)] == [1, 2]
    plain = paths.Cell("tiny", "phantom-BrainMRI", "resnet18", "fp32")
    assert finetune.schedule_of(loaded, plain, "cpu", "").seed == loaded.seed and str(plain).endswith("/fp32/fold0")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"weights": "w.pt"}, "weights: "),
        pytest.param(
            {"device": "cuda"},
            "device: cuda is asked for, but torch sees no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_is_not_there_stops_a_batch_before_it_starts(tmp_path, runs, capsys, changes, said):
    assert cli.main(["batch", str(write_profile(tmp_path, **changes))]) == 2
    assert said in capsys.readouterr().err and not runs.exists()


def test_a_backbone_that_timm_does_not_know_stops_a_batch_before_it_starts(tmp_path, runs, monkeypatch, capsys):
    known = params.backbones()
    monkeypatch.setattr(
        params, "backbones", lambda: known | {"resnet18": known["resnet18"].model_copy(update={"timm": "resnet81"})}
    )
    for command in ("batch", "plan"):
        assert cli.main([command, str(write_profile(tmp_path))]) == 2
        assert "did you mean resnet18" in capsys.readouterr().err and not runs.exists()


def test_backbones_are_tried_first_unless_they_are_known_to_convert_as_they_are(tmp_path, runs, monkeypatch, capsys):
    tried, known = [], params.backbones()
    own = known["resnet18"].model_copy(update={"options": {"drop_rate": 0.3}})
    monkeypatch.setattr(params, "backbones", lambda *_: known | {"own": own})
    monkeypatch.setattr("medq.quantize.stage.rehearse", lambda name, *_: tried.append(name) or {"ptq-fbgemm": "so"})
    loaded = params.load(write_profile(tmp_path, backbones=["resnet18", "own"]))
    batch._look_for_what_is_needed(loaded, plan.jobs(loaded))
    assert tried == ["own"] and "note: own: ptq-fbgemm will be unsupported: so" in capsys.readouterr().out


@pytest.mark.parametrize(
    "only, code", [([], 2), (["--only", "regime=ptq-fbgemm"], 2), (["--only", "regime=fp32"], cli.INTERRUPTED)]
)
def test_fewer_training_images_than_are_calibrated_with_stop_a_batch_before_it_starts(
    tmp_path, runs, capsys, monkeypatch, only, code
):
    def start(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "_run_planned", start)
    profile = write_profile(tmp_path, calibration={"images": 65}, subset={"train": 64, "held_out": 32})
    assert cli.main(["batch", str(profile), *only]) == code
    said = "tiny: calibration.images: 65 are asked for but the training part of phantom-BrainMRI has 64; lower it."
    assert (said in capsys.readouterr().err, runs.exists()) == ((True, False) if code == 2 else (False, True))


def test_folds_that_only_some_datasets_have(tmp_path, runs):
    both = params.load(write_profile(tmp_path, datasets=["phantom-BrainMRI", "phantom-ChestXray"], folds=[1], study={}))
    timing = plan.Job("latency", paths.Cell("tiny", "", "resnet18", ""))
    assert list(map(str, plan.needed(both, timing))) == ["phantom-ChestXray/resnet18/fp32/fold1"]
    for dataset, fold, said in (
        ("BrainMRI", 1, "no dataset of tiny has fold 1"),
        ("SkinCancer", 7, "has no fold 7; it"),
    ):
        with pytest.raises(UserError, match=said):
            plan.jobs(params.load(write_profile(tmp_path, datasets=[f"phantom-{dataset}"], folds=[fold])))


def test_a_plan_says_whose_images_it_cannot_count(tmp_path, runs, monkeypatch, capsys):
    known = params.datasets()
    own = known["phantom-BrainMRI"].model_copy(update={"name": "Own", "release": {}})
    monkeypatch.setattr(params, "datasets", lambda: known | {"Own": own})
    assert cli.main(["plan", str(write_profile(tmp_path, datasets=["Own"]))]) == 0
    assert "Not counted: the images of Own, which have no `release`" in capsys.readouterr().out


def test_jobs_see_the_same_folders_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDQ_DATA", "my data")
    monkeypatch.setenv("MEDQ_RUNS", "runs")
    jobs = batch._environment(1, None)
    assert (jobs["MEDQ_DATA"], jobs["MEDQ_RUNS"]) == (str(tmp_path / "my data"), str(tmp_path / "runs"))


@pytest.mark.parametrize(
    "stage, given, said",
    [
        ("finetune", {"changes": "epochs"}, "changes: must map"),
        ("finetune", {"changes": {1: 2}}, "keys should be strings"),
        ("finetune", {"changes": {"path": "x"}}, "unknown key 'path'"),
        ("collect", {"results": 5}, "results: must be"),
        (
            "diagnosis",
            {"dataset": "phantom-BrainMRI", "backbone": "resnet18", "regime": "fp32"},
            "unknown regime 'fp32'",
        ),
    ],
)
def test_parameters_of_a_notebook_are_checked_before_it_works(stage, given, said, runs):
    with pytest.raises(UserError, match=said):
        notebook.start(given, stage)


@pytest.mark.parametrize(
    "name, value",
    [*(("MEDQ_THREADS", value) for value in ("two", "0", "-1", "1.5", "100000")), ("MEDQ_GPU_SLOTS", "two")],
)
def test_numbers_in_the_environment_that_cannot_be_meant_are_refused(name, value, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    assert cli.main(["batch", str(write_profile(tmp_path))]) == 2
    assert capsys.readouterr().err.startswith(f"medq: {name}: must be a whole number") and not runs.exists()
    with pytest.raises(UserError, match=name):
        notebook.start({}, "finetune")


def test_a_dataset_whose_name_papermill_reads_as_a_number(runs, monkeypatch):
    known = params.datasets()
    monkeypatch.setattr(params, "datasets", lambda *_: known | {"2024": known["phantom-BrainMRI"], "007": None})
    assert notebook.start({"dataset": 2024}, "datasets")[1].dataset == "2024"
    with pytest.raises(UserError, match="dataset: 7 is not text.*-r dataset"):
        notebook.start({"dataset": 7}, "datasets")


# --- what a change makes stale ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, stale",
    [
        ({}, set()),
        ({"calibration": {"images": 16}}, {PTQ}),
        ({"qat": {"epochs": 9}}, set()),
        ({"bootstrap": {"resamples": 65}}, set()),
        ({"cell_minutes": 5.0}, set()),
        ({"train": {"epochs": 3, "learning_rate": 2e-3}}, {FP32, PTQ}),
        ({"seed": 43}, {DATA, FP32, PTQ}),
        ({"overrides": {"resnet18": {"train": {"patience": 3}}}}, {FP32, PTQ}),
        ({"overrides": {"resnet50": {"train": {"patience": 3}}}}, set()),
    ],
)
def test_a_changed_parameter_makes_stale_what_reads_it(finished, tmp_path, changes, stale):
    loaded = params.load(write_profile(tmp_path / "params", **changes))
    assert set(why(loaded)) == stale


def test_a_study_of_a_trained_integer_model_depends_on_how_it_was_trained():
    once, longer = (params.load("smoke", qat={"epochs": n}) for n in (1, 2))

    def depends(regime):
        place = paths.Cell("smoke", once.datasets[0], "resnet18", f"diagnosis-{regime}", 0)
        first, second = (keys.inputs(p, "diagnosis", place, key_of=lambda _: "") for p in (once, longer))
        return first != second

    assert depends("qat-fbgemm") and not depends("fbgemm")


@pytest.mark.parametrize("stage", ["ablation", "diagnosis"])
def test_neither_the_name_of_a_studys_cell_nor_what_it_alone_knows_makes_it_stale(stage, runs):
    loaded, only = params.load("smoke"), {"stage": [stage], "dataset": ["phantom-BrainMRI"], "backbone": ["resnet18"]}
    job = next(job for job in plan.jobs(loaded, only) if job.stage == stage)
    inputs = keys.inputs(loaded, stage, job.cell.of(study_name(stage, job.cell.regime)))
    job.folder.mkdir(parents=True)
    artefacts.finish(job.folder, [], inputs=inputs | {"versions": {"other": "1.0"}})
    assert why(loaded, only)[str(job)] == "images; starts from"  # which are not there


@pytest.mark.parametrize("stage, stale", [("quantize", PTQ), ("datasets", DATA)])
def test_changed_code_makes_its_stage_stale_and_images_looked_at_again_no_cell(finished, monkeypatch, stage, stale):
    code = keys.code
    monkeypatch.setattr(keys, "code", lambda name: "new" if name == stage else code(name))
    assert why(finished[0]) == {stale: "code"}


def test_what_is_found_in_the_images_decides_what_is_run_again(finished, killed, capsys):
    loaded, runs = finished
    data, cells = runs / "tiny" / DATA, runs / "tiny" / "phantom-BrainMRI" / "resnet18"
    facts = artefacts.record(data)
    facts["inputs"]["code"] = "earlier"
    artefacts.write_json(data / artefacts.DONE, facts | {"key": "earlier", "content": "as other code had found it"})
    assert why(loaded) == {DATA: "code", FP32: "images", PTQ: "images; starts from"}
    before = snapshot(cells)
    code, said = run_batch(killed[0], runs, capsys)
    assert code == 0 and "1 of 1 parts done" in said
    assert why(loaded) == {} and snapshot(cells) == before
    assert artefacts.record(data)["content"] == facts["content"]


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["killed", "failed", "deleted"])
def test_images_that_could_not_be_looked_at_again_cost_no_cell(finished, monkeypatch, capsys, harm):
    loaded, runs = finished
    data, code = runs / "tiny" / DATA, keys.code
    monkeypatch.setattr(keys, "code", lambda stage: "new" if stage == "datasets" else code(stage))
    planned = batch.stale(loaded)
    batch.mark(planned)  # and the batch is killed
    if harm == "failed":
        artefacts.write_json(data / artefacts.FAILED, {"reason": "no space"})
    if harm == "deleted":
        shutil.rmtree(data)
    cells = snapshot(runs / "tiny" / "phantom-BrainMRI" / "resnet18")
    if harm != "deleted":
        assert why(loaded) == {DATA: "code"}
        monkeypatch.setattr(keys, "code", code)
        assert set(why(loaded)) == {DATA}  # its notebook
    # whatever the plan says of the cells: the images come first, and then it is asked again
    monkeypatch.setattr(keys, "code", code)
    code, said = run_batch(write_profile(runs.parent / "params"), runs, capsys)
    assert code == 0, said
    assert why(loaded) == {} and snapshot(runs / "tiny" / "phantom-BrainMRI" / "resnet18") == cells


@pytest.mark.slow
def test_a_dataset_that_is_new_runs_beside_one_that_is_looked_at_again(finished, tmp_path, capsys):
    loaded, runs = finished
    facts = artefacts.record(runs / "tiny" / DATA)
    facts["inputs"]["code"] = facts["key"] = "earlier"
    artefacts.write_json(runs / "tiny" / DATA / artefacts.DONE, facts)
    profile = write_profile(tmp_path / "params", datasets=["phantom-BrainMRI", "phantom-ChestXray"], regimes=["fp32"])
    code, said = run_batch(profile, runs, capsys)
    assert code == 0 and "3 of 3 parts done" in said
    assert why(params.load(profile)) == {}


def test_cells_of_images_that_cannot_be_prepared_are_left_alone(finished, tmp_path, capsys):
    loaded, runs = finished
    (runs / "tiny" / DATA / artefacts.DONE).unlink()
    (runs / "tiny" / DATA / "folds.csv").unlink()
    (runs / "tiny" / DATA / "folds.csv").mkdir()  # so that preparing fails
    cells = snapshot(runs / "tiny" / "phantom-BrainMRI" / "resnet18")
    code, said = run_batch(write_profile(tmp_path / "params"), runs, capsys)
    assert code == 1 and f"failed {DATA}" in said
    assert snapshot(runs / "tiny" / "phantom-BrainMRI" / "resnet18") == cells


def test_comments_and_docstrings_are_no_change(tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "PACKAGE", tmp_path)
    monkeypatch.setitem(stages.STAGES, "made", stages.Stage("made", "made"))
    digests = []

    def clear():
        for cached in (keys.code, keys.modules, keys.imports):
            cached.cache_clear()

    for text in ('"""One."""\nx = 1\n', '"""Another."""\n# why\n\nx = 1\n', '"""One."""\nx = 2\n'):
        (tmp_path / "made.py").write_text(text)
        clear()
        digests.append(keys.code("made"))
    clear()
    assert digests[0] == digests[1] != digests[2]


def test_a_changed_notebook_is_shown_again_and_nothing_is_computed(finished, tmp_path, monkeypatch):
    shutil.copytree(paths.NOTEBOOKS, tmp_path / "notebooks")
    path = tmp_path / "notebooks" / "quantize.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].source += "  # changed"
    nbformat.write(notebook, path)
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    planned = batch.stale(finished[0])
    assert [(str(job), kind) for job, kind, _ in planned] == [(PTQ, batch.SHOWN)]
    batch.mark(planned)
    assert not artefacts.damage(planned[0][0].folder)  # the cell itself stays finished


@pytest.fixture
def real_cells(drawn, tmp_path, monkeypatch):
    """A profile on two classes of files, prepared, with a cell that claims to be trained from them."""
    from PIL import Image

    from medq.datasets.partition import prepare

    rng = np.random.default_rng(0)
    for split in ("Training", "Testing"):
        for name in ("glioma", "meningioma", "notumor", "pituitary"):
            folder = tmp_path / "data" / "brainmri" / split / name
            folder.mkdir(parents=True)
            for k in range(3):
                Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    monkeypatch.setenv("MEDQ_DATA", str(tmp_path / "data"))
    loaded = params.load(write_profile(tmp_path, datasets=["BrainMRI", "phantom-BrainMRI"], regimes=["fp32"]))
    for dataset in loaded.datasets:
        prepare(loaded, dataset)
        cell = paths.Cell("tiny", dataset, "resnet18", "fp32", 0)
        inputs = keys.inputs(loaded, "finetune", cell)
        cell.folder.mkdir(parents=True)
        artefacts.finish(cell.folder, [], key=keys.key(inputs), inputs=inputs)
    for job in plan.jobs(loaded):
        shutil.copy(paths.NOTEBOOKS / f"{job.stage}.ipynb", job.folder)
    return loaded, tmp_path / "data" / "brainmri" / "Testing" / "glioma" / "1.png"


@pytest.mark.filterwarnings("ignore::medq.datasets.DatasetWarning")
def test_a_changed_image_makes_its_dataset_stale_and_a_touched_one_does_not(real_cells, tmp_path, capsys):
    from PIL import Image

    loaded, image = real_cells
    assert why(loaded) == {}
    os.utime(image, ns=(1, 1))
    capsys.readouterr()
    assert cli.main(["batch", str(tmp_path / "tiny.yaml"), "--dry-run"]) == 0  # does not read it, and says so
    out = capsys.readouterr().out
    assert "BrainMRI/data: images" in out and "note: BrainMRI: the batch reads the images first" in out
    assert why(loaded) == {}
    Image.fromarray(np.zeros((40, 40, 3), dtype=np.uint8)).save(image)
    stale = why(loaded)
    assert set(stale) == {"BrainMRI/data", "BrainMRI/resnet18/fp32/fold0"}
    assert all(reason == "images" or reason.startswith("images") for reason in stale.values())


@pytest.mark.filterwarnings("ignore::medq.datasets.DatasetWarning")
def test_images_that_are_elsewhere_count_as_prepared(real_cells, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDQ_DATA", str(tmp_path))
    with pytest.warns(DatasetWarning, match="What was prepared earlier is used"):
        assert why(real_cells[0]) == {}


def test_datasets_whose_images_are_missing_are_all_named_before_anything_starts(tmp_path, runs, monkeypatch, capsys):
    monkeypatch.setenv("MEDQ_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "brainmri" / "Training").mkdir(parents=True)
    profile = write_profile(tmp_path, datasets=["ChestXray", "BrainMRI", "phantom-BrainMRI"], regimes=["fp32"])
    before = set(tmp_path.rglob("*"))
    assert cli.main(["batch", str(profile), "--results", str(tmp_path / "results")]) == 2
    said = capsys.readouterr().err
    assert "ChestXray is not in" in said and "no images in Testing of 'glioma'" in said
    assert set(tmp_path.rglob("*")) == before and not runs.exists()


@pytest.mark.filterwarnings("ignore::medq.datasets.DatasetWarning")
def test_nothing_finished_is_lost_where_images_to_be_prepared_again_are_gone(real_cells, monkeypatch, tmp_path, capsys):
    loaded, image = real_cells
    monkeypatch.setattr(keys, "code", lambda stage: "other")
    image.parents[2].rename(tmp_path / "elsewhere")
    finished = set(paths.runs().rglob("done.json"))
    profile = write_profile(tmp_path, datasets=["BrainMRI", "phantom-BrainMRI"], regimes=["fp32"])
    assert cli.main(["batch", str(profile), "--results", str(tmp_path / "results")]) == 2
    assert "BrainMRI is not in" in capsys.readouterr().err
    assert finished and set(paths.runs().rglob("done.json")) == finished


# --- the grid ---------------------------------------------------------------------------------------------------------


def test_the_paper_profile_is_144_cells_times_folds():
    found = plan.jobs(params.load("paper"))
    grid = [job for job in found if job.stage in ("finetune", "quantize") and job.cell.regime != "fp32-continued"]
    assert len({(j.cell.dataset, j.cell.backbone, j.cell.regime) for j in grid}) == 144
    assert len(grid) == 48 * (1 + 5 + 5)
    assert len({job.notebook for job in found}) == len(found)
    positions = {job: k for k, job in enumerate(found)}
    needed = {job: plan.needed(params.load("paper"), job) for job in found}
    assert all(positions[before] < positions[job] for job, all_before in needed.items() for before in all_before)


def test_maps_wait_for_every_model_that_they_are_compared_with():
    loaded = params.load("smoke")
    (first, *_) = plan.jobs(loaded, {"stage": ["attention"], "dataset": ["phantom-BrainMRI"], "backbone": ["resnet18"]})
    assert first.stage == "datasets"
    job = plan.Job("attention", paths.Cell("smoke", "phantom-BrainMRI", "resnet18", "", 0))
    trained = {"fp32", "qat-fbgemm", "qat-qnnpack", "fp32-continued"}
    assert {before.cell.regime for before in plan.needed(loaded, job)} == trained


def test_only_takes_along_what_the_chosen_start_from():
    loaded = params.load("smoke")
    found = plan.jobs(
        loaded,
        batch.parse_only(["dataset=phantom-SkinCancer", "backbone=resnet18", "regime=ptq-fbgemm"], plan.parts(loaded)),
    )
    assert {str(job) for job in found} == {
        "phantom-SkinCancer/data",
        "phantom-SkinCancer/resnet18/fp32/fold0",
        "phantom-SkinCancer/resnet18/ptq-fbgemm/fold0",
    }


def test_a_batch_of_images_alone_ends_well_without_results(tmp_path, drawn, capsys):
    words = ["batch", str(write_profile(tmp_path)), "--only", "stage=datasets", "--results", str(tmp_path / "results")]
    for done in ("1 of 1 parts done", "0 of 0 parts done"):
        assert cli.main(words) == 0
        printed = capsys.readouterr().out
        assert done in printed and "nothing to collect" in printed and "failed" not in printed
    assert (drawn / "tiny" / DATA / "done.json").is_file() and not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "image_size, asked, cores, gigabytes, at_a_time, threads",
    [
        (64, None, 2, 100, 2, 1),
        (64, None, 64, 9, 3, 21),
        (64, 1, 7, 100, 1, 7),
        (64, 3, 7, 100, 3, 2),
        (64, 200, 2, 600, 200, 1),
        (64, 4, 4, 1, 1, 4),
        (64, 8, 8, 24, 8, 1),
        (224, 8, 8, 24, 2, 4),  # larger images leave memory for fewer jobs
        (448, 8, 8, 24, 1, 8),
    ],
)
def test_jobs_share_cores_and_memory(monkeypatch, image_size, asked, cores, gigabytes, at_a_time, threads):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=gigabytes * 1000 * 2**20))
    loaded = params.load("smoke").model_copy(update={"image_size": image_size})
    assert batch.shares(loaded, asked, cores)[:2] == (at_a_time, threads)


@pytest.mark.parametrize("profile", ["smoke", "paper"])
def test_the_rules_wildcards_name_their_job(profile):
    import re

    loaded = params.load(profile)
    for job in plan.jobs(loaded):
        pattern = re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", stages.STAGES[job.stage].output)
        assert plan.job_of(loaded, job.stage, re.fullmatch(pattern, job.notebook).groupdict()) == job
    seeded = plan.job_of(
        loaded, "quantize", {"dataset": "a b", "backbone": "c", "regime": "fp32", "place": "seed7/fold2"}
    )
    assert (seeded.cell.seed, seeded.cell.fold) == (7, 2)


# --- one batch at a time ----------------------------------------------------------------------------------------------


def test_a_second_batch_is_refused_until_the_first_is_killed(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom medq import batch\n"
        "with batch.batch_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout.readline() == b"held\n"
    said = rf"process {holder.pid} on \S+, since \d{{4}}-"
    with pytest.raises(UserError, match=said), batch.batch_lock(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with batch.batch_lock(tmp_path):
        pass


def test_slots_share_gpus_and_come_back(runs, monkeypatch):
    code = (
        "from medq import slots\nslots.gpus = lambda: ['0', '1']\nslots._limit_memory = lambda share: print(share, end=' ')\n"
        "print(slots.acquire(), flush=True)\ninput()\n"
    )
    env, holders = environment(runs) | {"MEDQ_GPU_SLOTS": "2"}, []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}

    def holder():
        holders.append(subprocess.Popen([sys.executable, "-c", code], env=env, cwd=ROOT, **pipes))
        return holders[-1]

    assert [holder().stdout.readline().strip() for _ in range(4)] == [b"0.45 0", b"0.45 1", b"0.45 0", b"0.45 1"]
    waiting = holder()
    holders[1].kill()
    assert waiting.stdout.readline().strip() == b"0.45 1"
    for process in holders:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "asked, device, slots_each, at_a_time",
    [(None, "cuda", "1", "gpu=2"), ("3", "cuda", "3", "gpu=6"), (None, "cpu", None, None)],
)
def test_each_gpu_gets_one_cell_unless_more_are_asked_for(
    runs, tmp_path, monkeypatch, asked, device, slots_each, at_a_time
):
    seen = []
    monkeypatch.setattr(slots, "gpus", lambda: ["0", "1"])
    monkeypatch.setattr(batch, "_watch", lambda command, log, todo, given, grace: seen.append((command, given)))
    monkeypatch.setenv("MEDQ_GPU_SLOTS", asked) if asked else monkeypatch.delenv("MEDQ_GPU_SLOTS", raising=False)
    profile = write_profile(tmp_path, device=device)
    loaded = params.load(profile)
    (runs / loaded.profile).mkdir(parents=True)
    args = SimpleNamespace(params=str(profile), jobs=None, profile=None, snakemake=["--verbose"])
    batch._snakemake(loaded, args, tmp_path / "out", False, [(plan.job_of(loaded, "collect", {}), batch.SHOWN, "")])
    ((command, given),) = seen
    assert given.get("MEDQ_GPU_SLOTS") == slots_each
    assert [word for word in command if word.startswith("gpu=")] == [at_a_time] * bool(at_a_time)
    assert command[command.index("--resources") + 1].startswith("mem_mb=")
    assert command[-3:] == ["--verbose", "--", "collect/collect.ipynb"]


@pytest.mark.parametrize(
    "visible, found",
    [
        ("0,2", ["0", "2"]),
        ("GPU-8932f937, 1", ["GPU-8932f937", "1"]),
        ("-1", []),
        ("NoDevFiles", []),
        ("", []),
        ("1,-1,0", ["1"]),
    ],
)
def test_hidden_gpus_are_none(visible, found, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert slots.gpus() == found
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert slots.gpus() == []


@pytest.mark.parametrize(
    "stage, regime, gpus",
    [
        ("finetune", "fp32", 1),
        ("finetune", "fp16", 1),
        ("quantize", "qat-qnnpack", 1),
        ("quantize", "ptq-fbgemm", 0),
        ("diagnosis", "ptq-fbgemm", 0),
        ("ablation", "", 0),
        ("latency", "", 1),
    ],
)
def test_only_what_trains_or_is_timed_takes_a_gpu(stage, regime, gpus):
    job = plan.Job(stage, paths.Cell("p", "d", "b", regime))
    assert [plan.gpus_of(params.load(name), job) for name in ("paper", "smoke")] == [gpus, 0]


def test_no_slots_unless_asked_for(monkeypatch):
    monkeypatch.delenv("MEDQ_GPU_SLOTS", raising=False)
    assert slots.acquire() is None


# --- how it goes, and why it failed -----------------------------------------------------------------------------------


def test_progress_is_counted_from_records(runs):
    cell = paths.Cell("p", "d", "b", "fp32", 0)
    todo = [
        plan.Job("finetune", cell),
        plan.Job("quantize", cell.of("ptq-fbgemm")),
        plan.Job("finetune", cell.of("fp16")),
    ]
    weights = dict.fromkeys(todo, 30)
    assert not any(job.done or job.failed for job in todo)
    assert batch.progress(weights, set(), 5) == (0, "0 of 3 done, 0 failed")
    artefacts.write_text(todo[0].folder / "finetune.ipynb", "")
    artefacts.finish(todo[0].folder, [], status="unsupported", reason="no engine")
    artefacts.write_json(todo[1].folder / artefacts.FAILED, {"reason": "boom"})
    ended = {job for job in todo if job.done or job.failed}
    assert batch.progress(weights, ended, 60)[1] == "1 of 3 done, 1 failed, about 30 s left"
    weights[todo[0]] = 3600  # the long job is behind: what is left is short
    share, text = batch.progress(weights, ended, 3630)
    assert share == 3630 / 3660 and text.endswith(", about 30 s left")
    assert batch.progress(weights, ended, 2 * 3630)[1].endswith(", about 60 s left")  # it goes slower than expected
    assert batch.progress(weights, ended, 3630, since=10)[1].endswith(", about 20 s left")
    assert batch.progress(weights, ended, 3630, since=40)[1] == "1 of 3 done, 1 failed"  # nothing is known of the rest


def test_a_training_is_expected_to_take_longer_than_what_follows_it(runs):
    loaded = params.load("paper")
    cell = paths.Cell("paper", "ChestXray", "resnet18", "fp32", 0)
    jobs = [
        plan.Job("finetune", cell),
        plan.Job("quantize", cell.of("qat-fbgemm")),
        plan.Job("quantize", cell.of("ptq-fbgemm")),
    ]
    fp32, qat, ptq = (sum(plan.seconds(loaded, job, {}).values()) for job in jobs)
    assert fp32 > qat > ptq
    faster = {("resnet18", "fp32"): 1e9}
    assert sum(plan.seconds(loaded, jobs[0], faster).values()) < fp32


def test_what_failed_is_reported_collected_and_status_1(finished, monkeypatch, capsys):
    from medq import collect, execute

    loaded, runs = finished
    job = next(job for job in plan.jobs(loaded) if job.stage == "quantize")
    (job.folder / artefacts.DONE).unlink()
    artefacts.write_text(job.log, "{}")
    monkeypatch.setattr(execute, "run", lambda *_, **__: "it cannot be done.")
    with pytest.raises(RuntimeError):
        batch.execute(loaded, job, "profile", 1)
    out = runs / "tables"
    collect.stage(loaded, out)
    assert batch._report(loaded, [job], out, 3.0) == 1
    said = capsys.readouterr().out
    assert f"failed {PTQ}: it cannot be done." in said and str(job.log) in said
    cells = pd.read_csv(out / "cells.csv").set_index("regime")
    assert cells.loc["ptq-fbgemm", ["status", "reason"]].tolist() == ["failed", "it cannot be done."]
