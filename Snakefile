# The rules of a batch, one for each stage of `medq.stages`. `medq batch PROFILE` calls this with what is left to do as
# targets;
#     snakemake --cores 2 --force-use-threads --config profile=params/smoke.yaml
# runs it alone. A job executes one notebook, which is its output. While it runs, and if it fails, the notebook is in
# logs/; what its stage writes beside the output is complete once done.json is there.
import __main__
from medq import batch, params, paths, plan, stages

PROFILE = params.profile_path(config.get("profile", "smoke")).absolute()
PARAMS = params.load(PROFILE)
ALL = [job.notebook for job in plan.jobs(PARAMS)]

# A notebook's process must not run Snakemake's command line again, which the standard library would have it import.
__main__.__spec__ = None
vars(__main__).pop("__file__", None)


workdir: str(paths.runs() / PARAMS.profile)


wildcard_constraints:
    dataset="[^/]+",
    backbone="[^/]+",
    regime="[^/]+",
    place=r"(seed\d+/)?fold\d+",
    engine="[a-z0-9]+",


def needed(stage):
    if stage == "collect":
        return lambda wildcards: config.get("collect", ALL)
    return lambda wildcards: [
        job.notebook for job in plan.needed(PARAMS, plan.job_of(PARAMS, stage, wildcards))
    ]


def gpus(stage):
    return lambda wildcards: plan.gpus_of(PARAMS, plan.job_of(PARAMS, stage, wildcards))


rule all:
    input: [*ALL, "collect/collect.ipynb"],


for row in stages.STAGES.values():
    alone = row.timed or row.name == "collect"  # nothing runs beside a timing: it takes every core

    rule:
        name: row.name
        input: ancient(needed(row.name)),
        output: row.output,
        threads: config.get("cores", 1) if alone else config.get("threads", 1)
        priority: -2 if row.name == "collect" else -row.timed
        resources:
            gpu=gpus(row.name),
            **({} if alone or row.name == "datasets" else {"mem_mb": plan.memory_mb(PARAMS)}),
        run:
            batch.execute(PARAMS, plan.job_of(PARAMS, rule, wildcards), PROFILE, threads, config.get("results", ""))
