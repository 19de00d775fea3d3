"""What all tests share: a scratch `runs/`, and the real images where they are."""

import contextlib
import os
import shutil
import sys
from pathlib import Path

import pytest
from fixtures.batch import finished, killed

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book" / "_ext"))  # what only the book's build needs


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A `runs/` folder of the test's own, with a space in its name; one thread."""
    folder = tmp_path / "my runs"
    monkeypatch.setenv("MEDQ_RUNS", str(folder))
    monkeypatch.setenv("MEDQ_THREADS", "1")
    return folder


@pytest.fixture
def alone(runs, monkeypatch):
    """`runs`, where stages see `fixtures.quantize.part` and train no FP32 model before them."""
    from fixtures.quantize import part

    from medq import finetune
    from medq.quantize import stage

    monkeypatch.setattr(stage, "partition", lambda *_: part())
    monkeypatch.setattr(finetune, "run", lambda *_: None)
    return runs


@pytest.fixture(scope="session")
def shared_tmp(tmp_path_factory):
    """A scratch folder that all processes of a test run share, for what is made once; make it under a file lock."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture
def drawn(runs, shared_tmp):
    """`runs` with the decoded pixels of earlier tests, so that phantoms are drawn once; they are links: damage none."""
    shared, own = shared_tmp / "pixels", runs / ".pixels"
    shared.mkdir(exist_ok=True)
    shutil.copytree(shared, own, copy_function=os.link)
    yield runs
    for path in sorted(own.glob("*px-*.npy")) + sorted(own.glob("*px-*.json")):  # the record comes last
        with contextlib.suppress(FileExistsError):
            os.link(path, shared / path.name)


@pytest.fixture
def interrupted(monkeypatch):
    """A context in which training ends as by Ctrl-C, once an epoch has been saved."""
    from medq import fit

    @contextlib.contextmanager
    def context():
        save = fit._save

        def stop(*args):
            save(*args)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(fit, "_save", stop)
            yield

    return context


@pytest.fixture(scope="session")
def real_data():
    """Folder of real images: `MEDQ_DATA`, or `shared/data` beside the repository; the test is skipped without it."""
    folder = Path(os.environ.get("MEDQ_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "brainmri").is_dir():
        pytest.skip(f"no real images at {folder}: set MEDQ_DATA")
    return folder


@pytest.fixture(scope="session")
def full():
    """Made results of a whole grid; change nothing in it."""
    from fixtures import results as fixtures_results

    return fixtures_results.world()


@pytest.fixture(scope="session")
def gaps():
    """Made results with an unsupported, a failed and a missing cell, and one whose kernels err; change nothing in it."""
    from fixtures import results as fixtures_results

    return fixtures_results.world(
        unsupported=(("BrainMRI", "convnext_tiny", "ptq-qnnpack"),),
        failed=(("ChestXray", "vit_base", "qat-fbgemm"),),
        missing=(("SkinCancer", "vit_base", "qat-qnnpack"),),
        disagree=(("SkinCancer", "mobilenetv2", "ptq-qnnpack"),),
    )
