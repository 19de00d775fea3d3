"""The command line: quick to start, one sentence for a mistake, and commands that plug in as modules."""

import subprocess
import sys

import pytest

from medq import cli
from medq.errors import UserError

HEAVY = ("torch", "pandas", "numpy", "sklearn", "matplotlib", "pydantic", "yaml", "snakemake", "papermill")


def medq(*words, **options):
    return subprocess.run([sys.executable, "-m", "medq.cli", *words], capture_output=True, text=True, **options)


@pytest.fixture
def command(monkeypatch):
    """Put a made-up command in the table: `command(run)` gives main's status and what was printed."""
    import types

    def made(run, words=("made",)):
        module = types.ModuleType("medq_made_up")
        module.add_arguments, module.run = (lambda parser: parser.add_argument("--n", type=int, default=1)), run
        monkeypatch.setitem(sys.modules, "medq_made_up", module)
        monkeypatch.setitem(cli.COMMANDS, "made", ("medq_made_up", "a made-up command"))
        return cli.main(list(words))

    return made


def test_help_imports_nothing_heavy_and_names_every_command():
    code = (
        f"import sys; from medq import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
        f"print('HEAVY', [m for m in {HEAVY} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert "HEAVY []" in out
    assert all(name in out for name in cli.COMMANDS)


def test_arguments_reach_the_command_and_its_status_comes_back(command):
    assert command(lambda args: args.n, ["made", "--n", "7"]) == 7
    assert command(lambda args: None) == 0


def test_a_mistake_is_one_sentence_and_status_2(command, capsys):
    def run(args):
        raise UserError("params/x.yaml: seed: must be a number.")

    assert command(run) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "medq: params/x.yaml: seed: must be a number.\n")


def test_ctrl_c_is_130(command, capsys):
    def run(args):
        raise KeyboardInterrupt

    assert command(run) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_programming_error_is_not_hidden(command):
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


def test_data_check_of_a_phantom(capsys):
    assert cli.main(["data", "check", "phantom-BrainMRI"]) == 0
    assert "fit for use" in capsys.readouterr().out


def test_data_check_of_an_unfit_folder_is_status_1(tmp_path, capsys):
    (tmp_path / "brainmri").mkdir()
    assert cli.main(["data", "check", "BrainMRI", "--root", str(tmp_path)]) == 1
    assert "not fit for use" in capsys.readouterr().out


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


def test_fetch_of_a_phantom_is_refused_in_a_sentence(capsys):
    assert cli.main(["data", "fetch", "phantom-BrainMRI"]) == 2
    assert "drawn when it is needed" in capsys.readouterr().err
