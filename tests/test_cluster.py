"""profiles/kubernetes with a stand-in for kubectl that runs each Job on this machine, with nothing but the Job's own environment."""

import importlib.util
import json
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
import yaml
from fixtures.batch import start_batch, write_profile

from medq import artefacts, paths

KUBERNETES = paths.ROOT / "profiles" / "kubernetes"
KUBECTL = """import json, os, pathlib, signal, subprocess, sys
state, words = pathlib.Path({state!r}), [w for w in sys.argv[1:] if not w.startswith("--")]
if words[0] == "create":
    job = json.load(sys.stdin)
    name = job["metadata"]["generateName"] + str(len(list(state.glob("*.json"))))
    (state / (name + ".json")).write_text(json.dumps(job))
    cell = job["spec"]["template"]["spec"]["containers"][0]
    own = {{e["name"]: e["value"] for e in cell["env"]}} | {{"PATH": os.environ["PATH"], "HOME": {state!r}}}
    run = '"$@"; echo $? > ' + repr(str(state / (name + ".rc")))
    job = subprocess.Popen(["sh", "-c", run, "sh", *cell["command"]], env=own, start_new_session=True, stdin=subprocess.DEVNULL,
                           stdout=open(state / (name + ".log"), "w"), stderr=subprocess.STDOUT)
    (state / (name + ".pid")).write_text(str(job.pid))
    print(name)
elif words[0] == "get" and (state / "unreachable").exists():
    (state / "unreachable").unlink()
    sys.exit("no answer")
elif words[0] == "get" and (state / (words[2] + ".json")).exists():
    rc = state / (words[2] + ".rc")
    code = rc.read_text().strip() if rc.exists() else ""
    print(json.dumps({{"status": {{}} if not code else {{"succeeded": 1}} if code == "0" else {{"failed": 1}}}}))
elif words[0] == "delete":
    for name in words[2:]:
        (state / (name + ".json")).unlink(missing_ok=True)
        if not (state / (name + ".rc")).exists():
            os.killpg(int((state / (name + ".pid")).read_text()), signal.SIGKILL)
"""


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    """Folder in which the stand-in keeps the Jobs it was given."""
    state, command = tmp_path / "jobs", tmp_path / "bin" / "kubectl"
    state.mkdir()
    command.parent.mkdir()
    (state / "kubectl.py").write_text(KUBECTL.format(state=str(state)))
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{state}/kubectl.py" "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    return state


@pytest.fixture
def job():
    """profiles/kubernetes/job.py as a module."""
    spec = importlib.util.spec_from_file_location("job", KUBERNETES / "job.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script, ends", [("exit 0", "success"), ("exit 3", "failed")])
def test_a_job_runs_its_script_and_says_how_it_ended(kubectl, job, tmp_path, monkeypatch, script, ends):
    monkeypatch.setenv("MEDQ_RUNS", "/medq/my runs")
    path = tmp_path / "my job.sh"
    path.write_text(f'echo "$MEDQ_RUNS" > "{tmp_path}/said"\n{script}\n')
    name = job.submit("4", "3000", "1", str(path))
    while (state := job.status(name)) == "running":
        time.sleep(0.05)
    assert state == ends and (tmp_path / "said").read_text() == "/medq/my runs\n"
    cell = json.loads((kubectl / f"{name}.json").read_text())["spec"]["template"]["spec"]["containers"][0]
    assert cell["resources"] == {
        "requests": {"cpu": "4", "memory": "3000M", "nvidia.com/gpu": "1"},
        "limits": {"memory": "3000M", "nvidia.com/gpu": "1"},
    }
    subprocess.run([str(KUBERNETES / "cancel"), name], check=True)
    assert job.status(name) == "failed"


def test_a_cluster_that_does_not_answer_is_asked_again(kubectl, job, tmp_path):
    path = tmp_path / "job.sh"
    path.write_text("exit 0")
    name = job.submit("1", "100", "0", str(path))
    while not (kubectl / f"{name}.rc").exists() or not (kubectl / f"{name}.rc").read_text():
        time.sleep(0.05)
    (kubectl / "unreachable").touch()
    assert [job.status(name), job.status(name)] == ["running", "success"]


def test_a_job_without_a_gpu_asks_for_none(job):
    template = yaml.safe_load((KUBERNETES / "job.yaml").read_text())
    made = job.manifest(template, "1", "6000", "0", "run.sh", {"HOME": "/root"})
    cell = made["spec"]["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in cell["resources"]["limits"] and cell["env"] == []
    template["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"memory": "64G"}}
    cell = job.manifest(template, "1", "6000", "0", "run.sh", {})["spec"]["template"]["spec"]["containers"][0]
    assert cell["resources"] == {"requests": {"cpu": "1", "memory": "6000M"}, "limits": {"memory": "64G"}}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_batch_through_jobs(kubectl, tmp_path):
    runs = tmp_path / "my runs"
    words = write_profile(tmp_path), runs, "--profile", str(KUBERNETES), "--jobs", "2"
    interrupted = start_batch(*words)
    while not list(kubectl.glob("*.pid")):
        time.sleep(0.1)
    interrupted.send_signal(signal.SIGINT)
    interrupted.communicate(timeout=60)
    assert interrupted.returncode != 0
    assert not list(kubectl.glob("medq-*.json"))  # the Job was taken back
    again = start_batch(*words)
    said = again.communicate()[0]
    assert again.returncode == 0, said
    assert len(list(kubectl.glob("medq-*.rc"))) == 4  # images, two cells, the collection
    assert (runs / "results" / "metrics.csv").is_file()
    assert all(artefacts.record(folder) for folder in (runs / "tiny").glob("*/*/*/fold0"))
