"""`medq doctor`: what this machine is, and what it can train, convert and time."""

import json
import shutil

from medq import provenance, regimes

NO_COMPILER = (
    "none, or a space in the path of this environment: no torch.compile, so neither its baseline, nor the runtime "
    "inductor, nor `compile: true`"
)
INTEGERS = (  # what the processor's instructions mean for 8-bit kernels and the reduced range; the first that fits
    (
        {"avx512_vnni", "avx_vnni", "amx_int8"},
        "With VNNI: 8-bit products are summed in 32 bits and cannot saturate, except in fbgemm's depthwise kernels, which "
        "still sum in 16 bits; PyTorch's default for fbgemm therefore keeps activations in 7 bits (reduced range) here too.",
    ),
    ({"asimddp", "i8mm"}, "Arm with integer dot products: qnnpack sums in 32 bits and needs no reduced range."),
    (
        {"avx2"},
        "Without VNNI: fbgemm sums pairs of products in 16 bits, which saturate unless activations keep to 7 bits (reduced "
        "range, PyTorch's default for fbgemm). A model calibrated for qnnpack, 8 bits, goes silently wrong under fbgemm here.",
    ),
)
UNKNOWN = "No instructions for 8-bit sums were recognised: expect INT8 to be slow, and check it against its simulation."
EXTRAS = {
    "batch": ("snakemake",),
    "book": ("jupyter-book", "plotly", "itables"),
    "fetch": ("kagglehub",),
    "dicom": ("pydicom", "python-gdcm"),
}


def add_arguments(parser):
    """Arguments of `medq doctor`."""
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args):
    """Print the report; exit status 1 if no INT8 regime can be converted here."""
    found = report()
    print(json.dumps(found, indent=2) if args.json else text(found))
    return 0 if any(found["regimes"][name]["convert"] == "yes" for name in regimes.INT8) else 1


def report():
    """Everything as a dict: versions, packages (extras), cpu, integers (a sentence), gpu, threads, memory_gib, engines
    {name: "works" or why not}, compiler, regimes {name: {train, convert, time}}, each `yes…` or `no: …`."""
    import psutil
    import torch

    from medq import _torchvision
    from medq.peers import RUNTIMES
    from medq.quantize import ENGINES

    _torchvision.ensure()
    cpu, gpu = provenance.cpu(), provenance.gpu()
    engines = {name: _try(name) for name in ENGINES}
    extras = EXTRAS | {"peers": sorted({name for runtime in RUNTIMES for name in runtime.packages})}
    return {
        "versions": provenance.versions(),
        "packages": {extra: dict.fromkeys(names, "") | provenance.installed(names) for extra, names in extras.items()},
        "cpu": cpu,
        "integers": integers(cpu["instructions"]),
        "gpu": gpu,
        "threads": {"torch": torch.get_num_threads(), "usable_cores": provenance.usable_cores()},
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "engines": engines,
        "compiler": compiler(),
        "regimes": fitness(gpu, engines, cpu["instructions"]),
    }


def compiler():
    """Path of the C++ compiler; empty if torch's path contains a space, which torch.compile cannot handle."""
    import torch

    return "" if " " in torch.__file__ else shutil.which("g++") or shutil.which("clang++") or ""


def integers(instructions):
    """What the processor's instructions mean for 8-bit kernels and the reduced range, as a sentence."""
    return next((sentence for known, sentence in INTEGERS if known & set(instructions)), UNKNOWN)


def fitness(gpu, engines, instructions):
    """{regime: {train, convert, time}}: `yes`, `yes, …` with a remark, or `no: …` with the reason."""
    emulated = "" if {"avx512_bf16", "amx_int8"} & set(instructions) else ", emulated and slow"
    train, half = "yes, on the CPU (slow)", f"yes, as bfloat16 on the CPU{emulated}"
    found = {
        "fp32": {"train": "yes" if gpu else train, "convert": "not needed", "time": "yes"},
        "fp16": {
            "train": "yes" if gpu else half,
            "convert": "not needed",
            "time": "yes" if gpu else "no: half precision is timed on a GPU",
        },
    }
    for row in (regimes.REGIMES[name] for name in regimes.INT8):
        works = "yes" if engines[row.engine] == "works" else f"no: {engines[row.engine]}"
        trains = found["fp32"]["train"] if row.schedule else "not needed"
        found[row.name] = {"train": trains, "convert": works, "time": works}
    return found


def _try(engine_name):
    """`works` if an engine converts and runs a small convolutional model and a dynamic Linear, or why."""
    import torch
    from torch import nn

    from medq.quantize import Unsupported, dynamic, static
    from medq.quantize.stage import DEFAULT

    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    x = torch.rand(2, 3, 8, 8)
    try:
        with torch.inference_mode():
            prepared = static.prepare(model.eval(), engine_name, DEFAULT, 8)
            static.calibrate(prepared, [x])
            static.convert(prepared, engine_name)(x)
            dynamic.convert(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), engine_name)(x)
    except Unsupported as error:
        return str(error)
    return "works"


def text(found):
    """The report as lines for a terminal."""
    cpu, gpu, threads = found["cpu"], found["gpu"], found["threads"]
    lines = ["Versions    " + ", ".join(f"{name} {version}" for name, version in found["versions"].items())]
    for extra, installed in found["packages"].items():
        parts = [f"{name} {version}" for name, version in installed.items() if version]
        lacking = [name for name, version in installed.items() if not version]
        there = [", ".join(parts)] if parts else []
        missing = [f"missing: {', '.join(lacking)} (pip install 'medq[{extra}]')"] if lacking else []
        lines.append(f"  [{extra}]".ljust(12) + "; ".join(there + missing))
    graphics = "none: FP32 and QAT train on the CPU, FP16 falls back to bfloat16"
    if gpu:
        graphics = f"{gpu['name']}, {gpu['memory_gib']} GiB, capability {gpu['capability']}, CUDA {gpu['cuda']}"
    lines += [
        f"Processor   {cpu['model']}, {threads['usable_cores']} usable cores, torch uses {threads['torch']} threads, "
        f"{found['memory_gib']} GiB",
        f"  integers  {', '.join(cpu['instructions']) or 'none recognised'}",
        f"            {found['integers']}",
        f"GPU         {graphics}",
        f"Compiler    {found['compiler'] or NO_COMPILER}",
        "Engines     " + "; ".join(f"{name}: {state}" for name, state in found["engines"].items()),
        "",
    ]
    rows = {"Regime": {key: key for key in ("train", "convert", "time")}} | found["regimes"]
    lines += [f"{name:<14}{row['train']:<30}{row['convert']:<30}{row['time']}" for name, row in rows.items()]
    return "\n".join(lines)
