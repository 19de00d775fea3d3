"""How the package's modules depend on each other, and what a stage's key covers."""

from medq import keys, stages


def modules():
    """{module: modules of the package that it imports, at its top or within a function}."""
    files = (path.relative_to(keys.PACKAGE).with_suffix("") for path in keys.PACKAGE.rglob("*.py"))
    names = [".".join(path.parts).removesuffix(".__init__") for path in files]
    return {name: keys.imports(name) for name in names if name != "__init__"}


def test_no_module_imports_one_that_imports_it():
    graph, finished = modules(), set()

    def visit(name, path):
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name not in finished:
            for other in graph.get(name, ()):
                visit(other, [*path, name])
            finished.add(name)

    for name in graph:
        visit(name, [])


def test_what_computes_imports_nothing_of_what_runs_collects_or_shows():
    graph = modules()
    above = {"batch", "execute", "plan", "collect", "cli", "claims", "advise", "tables", "figures"}
    for stage in stages.STAGES:
        if stage != "collect":
            for name in keys.modules(stage):
                assert not {other.split(".")[0] for other in graph[name]} & above, name


def test_a_stages_key_covers_what_it_imports_and_not_what_is_shown():
    covered = {stage: set(keys.modules(stage)) for stage in stages.STAGES}
    assert {"finetune", "fit", "backbones", "datasets.partition", "evaluate"} <= covered["finetune"]
    assert {"quantize.stage", "quantize.static", "quantize.kernels"} <= covered["quantize"] > covered["finetune"]
    assert {"quantize.kernels", "diagnosis"} <= covered["diagnosis"] and "metrics" in covered["remedies"]
    assert {"aggregate", "bootstrap", "metrics"} <= covered["collect"]
    assert "datasets.audit" in covered["datasets"] and "datasets.audit" not in covered["finetune"]
    assert not any({"tables", "figures", "results", "batch"} & names for names in covered.values())
