"""What a number needs to be believed: versions, hardware, commit, parameters, times."""

import contextlib
import os
import platform
import subprocess
from datetime import datetime, UTC
from importlib import metadata
from pathlib import Path

from medq import paths

PACKAGES = (
    "medq torch torchvision timm numpy pandas scikit-learn pillow papermill snakemake pyarrow numba safetensors pydicom"
).split()
INSTRUCTIONS = "avx2 avx512f avx512_vnni avx_vnni avx512_bf16 amx_int8 asimd asimddp i8mm".split()


def installed(packages):
    """{name: version} of those of `packages` that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def versions():
    """Version of Python and of each package that a number may depend on (those not installed are left out)."""
    found = {"python": platform.python_version()} | installed(PACKAGES)
    if "torch" in found:
        import torch

        found["torch"] = str(torch.__version__)  # with its build (+cpu, +cu130), which PyPI's metadata does not name
    return found


def cpu():
    """Processor model, the instruction sets that integer kernels use, and core count."""
    model, flags = platform.processor() or platform.machine(), []
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            if key.strip() in ("flags", "Features"):
                flags = value.split()
                break
    return {
        "model": model,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
    }


def usable_cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu():
    """Name, memory in GiB and compute capability of the first GPU, or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    facts = torch.cuda.get_device_properties(0)
    return {
        "name": facts.name,
        "memory_gib": round(facts.total_memory / 2**30, 1),
        "capability": f"{facts.major}.{facts.minor}",
        "cuda": torch.version.cuda,
    }


def commit():
    """Commit of the source tree and whether files other than results differ from it; None outside a git checkout."""

    def git(*words):
        return subprocess.run(["git", "-C", str(paths.ROOT), *words], capture_output=True, text=True, timeout=20)

    try:
        head = git("rev-parse", "HEAD")
        if head.returncode:
            return None
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results").stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"hash": head.stdout.strip(), "modified": bool(changed)}


def now():
    """Current time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def manifest(params, **facts):
    """Everything section 2.9 asks to be logged, with `facts` of the stage beside it."""
    import torch

    parameters = params.model_dump(mode="json")
    for settings in (parameters, *parameters["overrides"].values()):  # the file is known by its checksum, not its place
        settings["weights"] = settings["weights"] and Path(settings["weights"]).name
    if params.data_root:
        parameters["data_root"] = os.path.relpath(params.data_root, paths.ROOT)
    return {
        "parameters": parameters,
        "versions": versions(),
        "platform": platform.platform(),
        "cpu": cpu(),
        "gpu": gpu(),
        "commit": commit(),
        "quantized_engines": [e for e in torch.backends.quantized.supported_engines if e != "none"],
        "threads": torch.get_num_threads(),
        "written": now(),
        **facts,
    }
