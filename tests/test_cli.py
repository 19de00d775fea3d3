"""The command line: quick to start, one sentence for a mistake, and commands that plug in as modules."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from medq import cli
from medq.errors import UserError

HEAVY = ("torch", "pandas", "numpy", "sklearn", "matplotlib", "pydantic", "yaml", "snakemake", "papermill")


def medq(*words, **options):
    return subprocess.run([sys.executable, "-m", "medq.cli", *words], capture_output=True, text=True, **options)


@pytest.fixture
def command(monkeypatch):
    """Put a made-up command in the table: `command(run)` gives main's status and what was printed."""

    def made(run, words=("made",)):
        module = SimpleNamespace(add_arguments=lambda parser: parser.add_argument("--n", type=int, default=1), run=run)
        monkeypatch.setitem(sys.modules, "medq_made_up", module)
        monkeypatch.setitem(cli.COMMANDS, "made", ("medq_made_up", "a made-up command"))
        return cli.main(list(words))

    return made


def test_help_imports_nothing_heavy_and_names_every_command():
    code = "import sys; from medq import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    code += f"print('HEAVY', [m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "HEAVY []" in out
    assert all(name in out for name in cli.COMMANDS)


def test_arguments_reach_the_command_and_its_status_comes_back(command):
    assert command(lambda args: args.n, ["made", "--n", "7"]) == 7
    assert command(lambda args: None) == 0


@pytest.mark.parametrize(
    "error, status, said",
    [
        (UserError("x.yaml: seed: must be a number."), 2, "medq: x.yaml: seed: must be a number.\n"),
        (KeyboardInterrupt(), 130, "medq: stopped; the same command goes on from here.\n"),
    ],
)
def test_a_mistake_and_ctrl_c_are_one_sentence_and_a_programming_error_is_not_hidden(
    command, capsys, error, status, said
):
    def run(args):
        raise error

    assert command(run) == status and capsys.readouterr() == ("", said)
    with pytest.raises(ZeroDivisionError):
        command(lambda args: 1 / 0)


@pytest.mark.parametrize(
    "words, said",
    [
        (["batch", "params/none.yaml"], "no such file"),
        (["batch", "smoke", "--dry-run", "--only", "backbone=resnet19"], "did you mean 'resnet18'"),
        (["batch", "smoke", "--dry-run", "--only", "colour=red"], "unknown key of --only 'colour'"),
        (["batch", "smoke", "--dry-run", "--only", "backbone"], "key=name"),
        (["batch", "smoke", "--dry-run", "--only", "fold=7"], "unknown fold '7': known are 0"),
        (["batch", "smoke", "--dry-run", "--only", "stage=finetune", "regime=ptq-fbgemm"], "fits no part of smoke"),
        (["batch", "smoke", "--results", "/dev/null"], "--results /dev/null: is not a folder"),
        (["batch", "smoke", "--jobs", "0"], "--jobs"),
        (["batch", "smoke", "--profile", "profiles/none"], "no config.yaml there"),
        (["collect", "runs/none", "results/none"], "no such folder"),
        (["data", "check", "BrainMRY"], "did you mean 'BrainMRI'"),
        (["data", "check", "BrainMRI", "--root="], "root: is empty"),
        (["data", "fetch", "phantom-BrainMRI"], "drawn when it is needed"),
        (["plan", "smokey"], "no such file"),
    ],
)
def test_mistakes_a_user_can_make(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQ_RUNS", str(tmp_path / "runs"))
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("medq: ") and "Traceback" not in err
    assert not (tmp_path / "runs").exists()  # nothing is written


def test_unknown_command_lists_the_known_ones():
    done = medq("bach")
    assert done.returncode == 2 and "batch" in done.stderr


def test_data_check_of_a_phantom_is_status_0_and_of_an_unfit_folder_1(tmp_path, capsys):
    assert cli.main(["data", "check", "phantom-BrainMRI"]) == 0
    assert "phantom-BrainMRI: fit for use" in capsys.readouterr().out
    (tmp_path / "brainmri").mkdir()
    assert cli.main(["data", "check", "BrainMRI", "--root", str(tmp_path)]) == 1
    assert "BrainMRI: not fit for use" in capsys.readouterr().out


def test_home_is_expanded_in_arguments_and_variables(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MEDQ_RUNS", "~/runs")
    for words in (["data", "check", "BrainMRI", "--root=~/d"], ["collect", "~/runs/x", "~/results"], ["advise", "~/r"]):
        assert cli.main(words) in (1, 2)
        printed = "".join(capsys.readouterr())
        assert str(tmp_path) in printed and "~" not in printed


def test_what_data_lacks_is_a_note_without_code(tmp_path, capsys):
    from PIL import Image

    for k, name in enumerate(("COVID", "Normal", "Viral Pneumonia")):
        (tmp_path / "chestxray" / name / "images").mkdir(parents=True)
        for n in range(5):
            Image.new("L", (8, 8), 20 * k + n).save(tmp_path / "chestxray" / name / "images" / f"{n}.png")
    assert medq("data", "audit", "ChestXray", "--root", str(tmp_path)).stderr.startswith(
        "note: ChestXray: 15 images, the release has"
    )
