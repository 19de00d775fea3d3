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
    plain = (str, int, float, bool, list, dict, tuple, type(None))  # what a parameter cell can define
    given = {name: value for name, value in namespace.items() if name[0] != "_" and isinstance(value, plain)}
    for name in [name for name in given if name not in ("In", "Out")]:  # these are IPython's
        one_of("parameter", name, known)
    changes = given.get("changes", {})
    if not isinstance(changes, dict):
        raise UserError(f"changes: must map keys of the profile to values, not {changes!r}.")
    params = profiles.load(given.get("profile", "smoke"), changes)
    if changes:
        params = params.model_copy(update={"profile": f"{params.profile}-changed"})
    methods = stages.STAGES[stage].methods
    names = {"dataset": profiles.datasets(), "backbone": profiles.backbones(), "regime": regimes.of(*methods)}
    for kind in [kind for kind in names if kind in given]:
        value = given[kind]
        if not isinstance(value, str) and str(value) not in names[kind]:  # papermill's `-p dataset 2024` gives a number
            raise UserError(f"{kind}: {value!r} is not text; papermill keeps text as it is with -r {kind} NAME.")
        given[kind] = one_of(kind, str(value), list(names[kind]))
    if not isinstance(given.get("results", ""), str):
        raise UserError(f"results: must be the path of a folder, not {given['results']!r}.")
    params.thread_count()  # refused here, before any work
    if slots.per_gpu() and params.device != "cpu" and slots.trains(stage, given.get("regime", "")):
        slots.acquire()
    fold, backbone, seed = given.get("fold", 0), given.get("backbone", ""), given.get("seed")
    if seed is None and "fold" in known:
        seed = params.seeds_of(backbone)[0]
    for name, number in (("fold", fold), ("seed", seed or 0)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise UserError(f"{name}: must be a whole number from 0, not {number!r}.")
    return params, paths.Cell(params.profile, given.get("dataset", ""), backbone, given.get("regime", ""), fold, seed)
