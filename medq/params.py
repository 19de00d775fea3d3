"""Profiles, backbones and recipes: data in `params/`, validated once, frozen afterwards.

A profile fixes all that varies in a batch. Every mistake in one ends in a single sentence that names the file and the key.
"""

import os
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, create_model, field_validator, model_validator

from medq import paths, regimes, stages
from medq.config import Model, catalogue, read_yaml, validate
from medq.datasets.spec import DatasetSpec
from medq.errors import UserError, one_of

CONTROLS = regimes.CONTROLS
REGIMES = tuple(name for name in regimes.REGIMES if name not in CONTROLS)

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Subset(Model):
    """At most this many images of each part, stratified, groups kept together; without `held_out` all of that part."""

    train: Positive | None = None
    held_out: Positive | None = None


class Train(Model):
    """Section 2.5 of the paper; with 0 epochs `weights` are models that are trained already, taken as they are."""

    epochs: Annotated[int, Field(ge=0)] = 50
    batch_size: Annotated[int, Field(ge=2)] = 32
    learning_rate: Rate = 1e-4
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    patience: Positive = 10
    min_improvement: Fraction = 0.001
    selection: Literal["held-out", "inner"] = "held-out"


class Qat(Model):
    """Schedule of quantization-aware training, also that of its control `fp32-continued`.

    Observers stop following the activations, and batch-norm its running statistics, after these fractions of the epochs.
    """

    epochs: Positive = 5
    learning_rate: Rate = 1e-5
    freeze_observers: Fraction = 0.6
    freeze_batch_norm: Fraction = 0.4


class Calibration(Model):
    """Images of the training part that static quantization observes, and the sizes swept by Figure 4."""

    images: Positive = 256
    sizes: Annotated[list[Positive], Field(min_length=1)] = [16, 32, 64, 128, 256, 512, 1024]
    subsets: Positive = 3


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Latency(Model):
    """Section 2.8: warm-up batches, then timed batches.

    `seconds` is the time of each model at each batch size: one number for all, or a list in the order of `batch_sizes`.
    """

    image_size: Positive = 224
    batch_sizes: Annotated[list[Positive], Field(min_length=1)] = [1, 32]
    warmup: Annotated[int, Field(ge=0)] = 10
    seconds: Annotated[list[Seconds], Field(min_length=1)] = [5.0]
    batches: Positive = 500
    threads: Positive | None = None
    baselines: list[Literal["eager", "channels-last", "fused", "compiled"]] = ["eager", "channels-last", "fused"]

    @field_validator("seconds", mode="wrap")
    @classmethod
    def _one_for_all_or_each(cls, value, check, info):
        value = check([value] if isinstance(value, (int, float)) else value)
        sizes = info.data.get("batch_sizes", value)
        if len(value) not in (1, len(sizes)):
            raise ValueError(f"give one number, or one for each of the {len(sizes)} batch_sizes")
        return value

    def budget(self, batch_size):
        """Seconds of one model at a batch size."""
        return self.seconds[self.batch_sizes.index(batch_size) if len(self.seconds) > 1 else 0]


class Bootstrap(Model):
    """Section 3.5 of the paper."""

    resamples: Positive = 100_000  # Holm over some hundred comparisons needs p-values below 1e-4


# Which backbones the studies are made for; without a list every backbone, `[]` none. `recipes` limits the ablation.
Study = create_model(
    "Study",
    __base__=Model,
    recipes=(list[str] | None, None),
    **{row.name: (list[str] | None, [] if row.on_demand else None) for row in stages.STAGES.values() if row.study},
)

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Weights = Annotated[str, Field(min_length=1)]


def _ascending(seeds):
    if seeds != sorted(set(seeds)):
        raise ValueError("must ascend, each seed once: the studies are made of the first")
    return seeds


Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_ascending)]


class Override(Model):
    """What differs for one backbone."""

    train: dict[str, Any] = {}
    qat: dict[str, Any] = {}
    weights: Weights | None = None
    seeds: Seeds | None = None

    @field_validator("train")
    @classmethod
    def _one_selection(cls, value):
        if "selection" in value:
            raise ValueError("`selection` divides the images and is the same for every backbone; set `train.selection`")
        return value


class Params(Model):
    """A profile, complete and checked. `data_root` and files of `weights` are looked for beside the profile's own file.

    `seed` draws folds, subsets and calibration images, and trains. With several `seeds` every cell is trained once
    with each, on the same images; the studies are made for the first.
    """

    profile: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    about: str = ""
    data_root: str | None = None
    datasets: Annotated[list[str], Field(min_length=1)]
    backbones: Annotated[list[str], Field(min_length=1)]
    regimes: Annotated[list[str], Field(min_length=1)] = list(regimes.PAPER)
    controls: list[str] = ["fp32-continued"]
    folds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | Literal["all"] = "all"
    image_size: Annotated[int, Field(ge=32, le=1024)] = 224
    subset: Subset = Subset()
    deduplicate: bool = False
    weights: Weights = "imagenet"
    seed: Seed = 42
    seeds: Seeds | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False  # train compiled, except QAT: benchmarks/gpu.py says where that pays
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None
    cell_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  # longer than this is a failure
    train: Train = Train()
    qat: Qat = Qat()
    calibration: Calibration = Calibration()
    latency: Latency = Latency()
    bootstrap: Bootstrap = Bootstrap()
    study: Study = Study()
    overrides: dict[str, Override] = {}

    @field_validator("datasets", "backbones")
    @classmethod
    def _composed(cls, value):
        return [unicodedata.normalize("NFC", name) for name in value]  # as `config.check_name` returns them

    @field_validator("datasets", "backbones", "regimes", "controls", "folds")
    @classmethod
    def _no_repeats(cls, value):
        if isinstance(value, list) and len(set(value)) < len(value):
            raise ValueError("names an entry twice")
        return value

    @model_validator(mode="after")
    def _overrides_are_valid(self):
        for backbone, override in self.overrides.items():
            self.training(backbone), self.quantization(backbone)
            if override.seeds and not self.seeds:
                raise ValueError(f"overrides.{backbone}.seeds: the profile has one seed; give `seeds` there first")
        for backbone in self.backbones:
            if self.training(backbone).epochs == 0 and self.weights_of(backbone) in ("imagenet", "none"):
                raise ValueError(
                    f"train.epochs: 0 takes {backbone} as `weights` has it, which is {self.weights_of(backbone)}; "
                    "give a file or folder of trained models there"
                )
        return self

    def weights_of(self, backbone):
        """`imagenet`, `none`, or the path of the file or folder that one backbone starts from."""
        return getattr(self.overrides.get(backbone), "weights", None) or self.weights

    def seeds_of(self, backbone):
        """Seeds that one backbone is trained with: [None] where the profile has `seed` alone."""
        return getattr(self.overrides.get(backbone), "seeds", None) or self.seeds or [None]

    def folds_of(self, dataset):
        """Numbers of the folds of one dataset that the profile asks for; a fixed split has fold 0 alone."""
        known = range(datasets()[dataset].folds.n)
        asked = known if self.folds == "all" else self.folds
        for fold in asked:
            if fold not in known and len(known) > 1:
                raise UserError(f"folds: {dataset} has no fold {fold}; it has {', '.join(map(str, known))}.")
        return [fold for fold in asked if fold in known]

    def training(self, backbone):
        """The `Train` settings of one backbone."""
        return self._merged("train", backbone)

    def quantization(self, backbone):
        """The `Qat` settings of one backbone."""
        return self._merged("qat", backbone)

    def _merged(self, key, backbone):
        settings, changes = getattr(self, key), getattr(self.overrides.get(backbone), key, {})
        return validate(type(settings), settings.model_dump() | changes, f"overrides.{backbone}.{key}")

    def thread_count(self):
        """Threads of a process: `MEDQ_THREADS` (a batch shares the machine), else the profile's `threads`, else None."""
        given = os.environ.get("MEDQ_THREADS")
        if given and not (given.isdecimal() and 1 <= int(given) <= 1024):
            raise UserError(
                f"MEDQ_THREADS: must be a whole number from 1 to 1024, not {given!r}; unset it for all cores."
            )
        return int(given) if given else self.threads

    def root(self):
        """Folder of the images: `MEDQ_DATA`, else the profile's `data_root` (a manifest has it from the repository), else None."""
        return os.environ.get("MEDQ_DATA") or (self.data_root and os.path.normpath(paths.ROOT / self.data_root))


class Backbone(Model):
    """An entry of `params/backbones.yaml`."""

    title: str
    timm: str
    family: Literal["cnn", "transformer"]
    options: dict[str, bool | int | float | str] = {}
    scratch: dict[str, bool | int | float | str] = {}
    sized: bool = False


class Recipe(Model):
    """How static post-training quantization observes and quantizes; None keeps what PyTorch gives for the engine.

    `batch_norm`: `traced` as FX graph mode finds it (timm's combined norm-and-activation layers stay apart from their
    convolutions), `fused` into the convolution wherever there is one before it, `unfused` nowhere.
    `rounded`: activations behind each of the `operators`, as FX graph mode has it; behind `layers`, a ReLU6 that follows one
    being the end of its range; or only the `inputs` of convolutions and linear layers, which no engine of PyTorch runs.
    `training_mode`: traced with the model left in training mode, as when `eval()` is forgotten.
    `run_engine`: `other` converts and runs under the engine that the recipe was not made for.
    """

    title: str
    weights: Literal["per-tensor", "per-channel"] | None = None
    activations: Literal["minmax", "moving-average", "histogram", "percentile"] | None = None
    reduce_range: bool | None = None
    batch_norm: Literal["traced", "fused", "unfused"] = "traced"
    rounded: Literal["operators", "layers", "inputs"] = "operators"
    training_mode: bool = False
    normalised: bool = True
    run_engine: Literal["same", "other"] = "same"

    @model_validator(mode="after")
    def _range_ends_with_the_grid(self):
        if self.rounded == "layers" and self.reduce_range is not False:
            raise ValueError(
                "rounded: layers needs `reduce_range: false`: kernels clamp to all 8 bits, not to 7 of them"
            )
        return self


def backbones(folder=paths.PARAMS):
    """Known backbones by name: {name: Backbone}."""
    return catalogue(Path(folder) / "backbones.yaml", Backbone)


def recipes(folder=paths.PARAMS):
    """Known recipes of post-training quantization by name: {name: Recipe}."""
    return catalogue(Path(folder) / "recipes.yaml", Recipe)


def datasets(folder=paths.PARAMS):
    """Known datasets by name: {name: DatasetSpec}."""
    return catalogue(Path(folder) / "datasets.yaml", DatasetSpec)


def _with(value, changes):
    """`value` with `changes` merged into it, mapping by mapping."""
    if not (isinstance(value, dict) and isinstance(changes, dict)):
        return changes
    return value | {key: _with(value.get(key), new) for key, new in changes.items()}


def profile_path(name):
    """Path of a profile given as a path or as the name of one in `params/`."""
    text = str(name)
    return Path(text) if text.endswith((".yaml", ".yml")) else paths.PARAMS / f"{text}.yaml"


def _beside(folder, value):
    """`value` with `data_root` and files of `weights` as absolute paths: a notebook runs in another folder than the command."""
    value = dict(value)
    for key in ("data_root", "weights"):
        given = value.get(key)
        if isinstance(given, str) and given not in ("", "imagenet", "none"):
            value[key] = os.path.normpath(folder / os.path.expanduser(given))
    if isinstance(value.get("overrides"), dict):
        found = value["overrides"].items()
        value["overrides"] = {name: _beside(folder, o) if isinstance(o, dict) else o for name, o in found}
    return value


def load(path, replaced=None, /, **changes):
    """Read and check a profile; `changes` (or the mapping `replaced`) replace its keys before the check (nested mappings are merged).

    `path` is a file or the name of a profile in `params/`. Raises `UserError` naming the file and the key.
    """
    path = profile_path(path)
    value = _with(read_yaml(path), {**(replaced or {}), **changes})
    params = validate(Params, _beside(path.absolute().parent, value), str(path))
    if params.profile != path.stem:
        raise UserError(f"{path}: profile: must be {path.stem!r}, the file's own name, not {params.profile!r}.")
    lists = {  # {key: (kind of name, names given, names known)}
        "datasets": ("dataset", params.datasets, datasets()),
        "backbones": ("backbone", params.backbones, backbones()),
        "regimes": ("regime", params.regimes, REGIMES),
        "controls": ("control", params.controls, CONTROLS),
        "overrides": ("backbone", params.overrides, backbones()),
        **{f"study.{key}": ("backbone", names, backbones()) for key, names in params.study},
        "study.recipes": ("recipe", params.study.recipes, recipes()),
    }
    for key, (kind, names, known) in lists.items():
        for name in names or ():
            try:
                one_of(kind, name, list(known))
            except UserError as error:
                raise UserError(f"{path}: {key}: {error}") from None
    return params
