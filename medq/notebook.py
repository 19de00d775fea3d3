"""What every notebook begins with: its parameters checked, its profile loaded, its cell named."""

from medq import params as profiles, paths, regimes, slots, stages
from medq.errors import UserError, one_of


def start(namespace, stage):
    """(params, cell) of a notebook from its `globals()`.

    `profile` is a file or the name of one in `params/`, `changes` replaces keys of it (nested mappings are merged; the
    run then goes to a folder of its own, so that a batch's cells are never overwritten). Fields of the cell that the
    stage does not have are empty. Raises `UserError` for a parameter, dataset, backbone or regime that does not exist.
    """
    known = stages.notebook_parameters(stage)
    given = {name: value for name, value in namespace.items() if _is_parameter(name, value)}
    for name in given:
        one_of("parameter", name, known)
    changes = given.get("changes", {})
    if not isinstance(changes, dict):
        raise UserError(f"changes: must map keys of the profile to values, not {changes!r}.")
    params = profiles.load(given.get("profile", "smoke"), changes)
    if changes:
        params = params.model_copy(update={"profile": f"{params.profile}-changed"})
    for kind, names in (
        ("dataset", profiles.datasets()),
        ("backbone", profiles.backbones()),
        ("regime", regimes.of(*stages.STAGES[stage].methods)),
    ):
        if kind in given:
            given[kind] = _as_text(kind, given[kind], list(names))
    if not isinstance(given.get("results", ""), str):
        raise UserError(f"results: must be the path of a folder, not {given['results']!r}.")
    params.thread_count()  # refused here, before any work
    if slots.per_gpu() and params.device != "cpu" and slots.trains(stage, given.get("regime", "")):
        slots.acquire()
    fold, backbone = given.get("fold", 0), given.get("backbone", "")
    seed = given.get("seed")
    if seed is None and "fold" in known:
        seed = params.seeds_of(backbone)[0]
    for name, number in (("fold", fold), ("seed", seed or 0)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise UserError(f"{name}: must be a whole number from 0, not {number!r}.")
    return params, paths.Cell(params.profile, given.get("dataset", ""), backbone, given.get("regime", ""), fold, seed)


def _as_text(kind, given, known):
    """The one of `known` that is meant: papermill's `-p dataset 2024` gives a number."""
    if isinstance(given, str) or str(given) in known:
        return one_of(kind, str(given), known)
    raise UserError(f"{kind}: {given!r} is not text; papermill keeps text as it is with -r {kind} NAME.")


def _is_parameter(name, value):
    """True for what a parameter cell can define: a public name with plain data in it, and none of IPython's own."""
    return (
        not name.startswith("_")
        and name not in ("In", "Out")
        and isinstance(value, (str, int, float, bool, list, dict, tuple, type(None)))
    )
