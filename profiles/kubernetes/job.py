"""What Snakemake's executor `cluster-generic` asks of Kubernetes, through kubectl.

job.py submit CPUS MEGABYTES GPUS SCRIPT    start a Job that runs SCRIPT; prints its name
job.py status NAME                          prints success, failed or running
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

PASSED = ("MEDQ_", "OMP_", "PYTHONPATH")  # variables that a job gets from where the batch was started


def manifest(template, cpus, megabytes, gpus, script, environment):
    """The Job of `template` that runs `script` with these resources."""
    cell = template["spec"]["template"]["spec"]["containers"][0]
    cell["command"] = ["/bin/sh", script]
    cell["env"] = cell.get("env", []) + [
        {"name": name, "value": value} for name, value in sorted(environment.items()) if name.startswith(PASSED)
    ]
    wanted = {"memory": f"{megabytes}M"} | ({"nvidia.com/gpu": gpus} if gpus != "0" else {})
    resources = cell.setdefault("resources", {})
    resources["requests"] = {"cpu": cpus, **wanted, **resources.get("requests", {})}
    resources["limits"] = {**wanted, **resources.get("limits", {})}
    return template


def submit(cpus, megabytes, gpus, script):
    """Create the Job; returns its name."""
    template = yaml.safe_load(Path(__file__).with_name("job.yaml").read_text(encoding="utf-8"))
    job = manifest(template, cpus, megabytes, gpus, script, os.environ)
    return _kubectl("create", "--filename=-", "--output=jsonpath={.metadata.name}", given=json.dumps(job))


def status(name):
    """How a Job stands; one that is gone has failed. Where kubectl gets no answer it runs on, and will be asked for again."""
    try:
        said = _kubectl("get", "job", name, "--ignore-not-found", "--output=json")
    except subprocess.CalledProcessError:
        return "running"
    state = json.loads(said)["status"] if said else {"failed": 1}
    return "success" if state.get("succeeded") else "failed" if state.get("failed") else "running"


def _kubectl(*words, given=None):
    return subprocess.run(
        ["kubectl", *words], input=given, check=True, text=True, stdout=subprocess.PIPE
    ).stdout.strip()


if __name__ == "__main__":
    print({"submit": submit, "status": status}[sys.argv[1]](*sys.argv[2:]))
