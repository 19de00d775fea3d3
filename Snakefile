# Which cell needs which file, nothing else. `medq batch PROFILE` calls this with what is left to do as targets;
#     snakemake --cores 2 --config profile=params/smoke.yaml
# runs it alone. Each job is one papermill run; the executed notebook is its output. While it runs, and if it fails, the
# notebook is in logs/; what the notebook's stage writes beside the output is complete once its done.json is there.
import json

from medq import batch, params, paths

PARAMS = params.load(config.get("profile", "smoke"))
CELL = "{dataset}/{backbone}/{regime}/{place}"
PAPERMILL = config.get("papermill", "papermill")
EXCLUSIVE = config.get("cores", 1)  # a timing takes every core: nothing runs beside it

workdir: str(paths.runs() / PARAMS.profile)

wildcard_constraints:
    dataset="[^/]+",
    backbone="[^/]+",
    regime="[^/]+",
    place=r"(seed\d+/)?fold\d+",
    engine="[a-z0-9]+",


def run(stage):
    """The job of a stage: run to a log, so that a failed notebook survives; the output is whole or absent."""
    return ("env MEDQ_THREADS={threads} OMP_NUM_THREADS={threads} {params.papermill} {params.notebook:q} {log.notebook:q} "
            "{params.values:q} {params.options} 2> {log.text:q} && mv {log.notebook:q} {output:q}")


def values(stage, **fixed):
    """Parameters of a stage's notebook, as papermill takes them."""
    return lambda wildcards: batch.arguments(config.get("profile", "smoke"), stage, {**wildcards, **fixed}, wildcards)


def logs(name):
    return {"notebook": f"logs/{name}.ipynb", "text": f"logs/{name}.log"}


def fp32(wildcards):
    return ancient(f"{wildcards.dataset}/{wildcards.backbone}/fp32/{wildcards.place}/finetune.ipynb")


def common(stage):
    return {"papermill": PAPERMILL, "notebook": str(paths.NOTEBOOKS / f"{stage}.ipynb"), "options": batch.options(PARAMS)}


rule all:
    input: [job.notebook for job in batch.jobs(PARAMS)],


rule datasets:
    output: "{dataset}/data/datasets.ipynb",
    log: **logs("{dataset}/data/datasets"),
    params: values=values("datasets"), **common("datasets"),
    threads: config.get("threads", 1)
    shell: run("datasets")


rule finetune:
    input:
        data=ancient("{dataset}/data/datasets.ipynb"),
        start=lambda w: fp32(w) if w.regime in params.CONTROLS else [],
    output: f"{CELL}/finetune.ipynb",
    log: **logs(f"{CELL}/finetune"),
    params: values=values("finetune"), **common("finetune"),
    threads: config.get("threads", 1)
    resources: **batch.resources(PARAMS, "finetune"),
    shell: run("finetune")


rule quantize:
    input: fp32,
    output: f"{CELL}/quantize.ipynb",
    log: **logs(f"{CELL}/quantize"),
    params: values=values("quantize"), **common("quantize"),
    threads: config.get("threads", 1)
    resources: **batch.resources(PARAMS, "quantize"),
    shell: run("quantize")


for stage in batch.STUDIES:
    folder = "{dataset}/{backbone}/" + stage + ("-{engine}" if stage in batch.PER_ENGINE else "") + "/{place}"

    rule:
        name: stage
        input: fp32,
        output: f"{folder}/{stage}.ipynb",
        log: **logs(f"{folder}/{stage}"),
        params: values=values(stage), **common(stage),
        threads: EXCLUSIVE if stage in batch.TIMINGS else config.get("threads", 1)
        priority: -1 if stage in batch.TIMINGS else 0
        resources: **batch.resources(PARAMS, stage),
        shell: run(stage)


rule latency:
    input: lambda w: ancient(batch.timed_after(PARAMS, w.backbone)),
    output: "latency/{backbone}/latency.ipynb",
    log: **logs("latency/{backbone}/latency"),
    params: values=values("latency"), **common("latency"),
    threads: EXCLUSIVE
    priority: -1
    resources: gpu=batch.resources(PARAMS, "latency")["gpu"],
    shell: run("latency")


rule collect:
    input: ancient(config.get("collect", [job.notebook for job in batch.jobs(PARAMS) if job.stage != "collect"])),
    output: "collect/collect.ipynb",
    log: **logs("collect/collect"),
    params: values=values("collect", results=config.get("results", "")), **common("collect"),
    threads: EXCLUSIVE
    priority: -2
    shell: run("collect")
