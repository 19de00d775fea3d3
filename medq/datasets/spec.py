"""The keys of an entry of params/datasets.yaml, validated."""

import unicodedata
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Strict, model_validator

from medq.config import Model

SPLITS = ("train", "held_out")

# One spelling of accents: class names are compared with folders, tables and each other.
Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$"), AfterValidator(partial(unicodedata.normalize, "NFC"))]
Names = Annotated[tuple[Name, ...], Strict(False)]  # a list in YAML
Count = Annotated[int, Field(ge=1)]


class Table(Model):
    """A text table with one row per image: its file, its columns, and the folders that may hold the images.

    `group` names the column of patients or lesions that splits keep whole, `split` a column with the release's own
    split. A group with two labels is an error unless `mixed_groups` allows it (patients may have two findings, a lesion
    has one diagnosis).
    """

    file: Name
    alternatives: Names = ()
    image: Name
    label: Name
    group: Name | None = None
    split: Name | None = None
    mixed_groups: bool = False
    folders: Annotated[Names, Field(min_length=1)]


class Folds(Model):
    """How the held-out parts are drawn (section 2.3)."""

    scheme: Literal["fixed", "stratified", "stratified-group"]
    n: Annotated[int, Field(ge=1)] = 5

    @model_validator(mode="after")
    def _enough(self):
        if self.scheme != "fixed" and self.n < 2:
            raise ValueError(f"{self.scheme} folds need n of 2 or more")
        if self.scheme == "fixed" and self.n != 1:
            raise ValueError("a fixed split has one held-out part: set n to 1")
        return self


class Phantom(Model):
    """The dataset that generated images imitate, their side in pixels, and the seed of everything drawn."""

    stands_for: Literal["BrainMRI", "ChestXray", "SkinCancer"]
    image_size: Annotated[int, Field(ge=16, le=512)] = 64
    seed: Annotated[int, Field(ge=0)] = 42


class DatasetSpec(Model):
    """One dataset: location of its images and labels, splits, contents of the public release, origin."""

    name: Name
    title: Name
    layout: Literal["folders", "table", "phantom"]
    classes: Annotated[Names, Field(min_length=2)]
    titles: dict[Name, Name] = {}
    folder: Names = ()
    splits: dict[Literal["train", "held_out"], Name] = {}
    pattern: Name | None = None
    table: Table | None = None
    phantom: Phantom | None = None
    folds: Folds
    release: dict[Literal["all", "train", "held_out"], dict[Name, Count]] = {}
    source: Name | None = None
    kaggle: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    licence: Name | None = None
    citation: Names = ()

    @property
    def grouped(self):
        """Whether images share groups (lesions, patients) that splits and resampling keep whole."""
        return self.folds.scheme == "stratified-group" or bool(self.table and self.table.group)

    def class_titles(self):
        """Titles of the classes in tables and figures, in label order."""
        return [self.titles.get(name, name) for name in self.classes]

    @model_validator(mode="after")
    def _fits_together(self):
        problems = [*_layout_problems(self), *_name_problems(self), *_split_problems(self)]
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _layout_problems(spec):
    needs = {"folders": "pattern", "table": "table", "phantom": "phantom"}
    for layout, key in needs.items():
        if spec.layout == layout and getattr(spec, key) is None:
            yield f"layout {layout} needs the key {key!r}"
        if spec.layout != layout and getattr(spec, key) is not None:
            yield f"the key {key!r} belongs to layout {layout}"
    if spec.layout == "phantom" and not spec.release:
        yield "layout phantom needs 'release': the number of images to draw"
    if spec.layout != "phantom" and not spec.folder:
        yield "the key 'folder' is missing: where the dataset lies below the data root"
    if spec.pattern is not None:
        folders, _, last = spec.pattern.rpartition("/")
        if "{class}" not in folders or "*" in folders or "{" in last or "**" in last:
            yield "pattern must name {class} as a folder and may have * (for one level) in its last part only"
        if ("{split}" in spec.pattern) != bool(spec.splits):
            yield "pattern names {split} exactly if there are 'splits'"
    if spec.layout == "table" and spec.table and (spec.table.split is not None) != bool(spec.splits):
        yield "table needs a 'split' column exactly if there are 'splits'"
    if spec.kaggle and (made := spec.kaggle.split("/")[1]) not in [folder.split("/")[0] for folder in spec.folder]:
        yield f"folder must list {made!r}, the folder that a download from Kaggle makes"
    of_table = [spec.table.file, *spec.table.alternatives, *spec.table.folders] if spec.table else []
    for path in map(Path, [*spec.folder, spec.pattern or "", *of_table]):
        if path.is_absolute() or ".." in path.parts:
            yield f"{str(path)!r} must be a path below the data root"


def _name_problems(spec):
    if repeated := sorted({name for name in spec.classes if spec.classes.count(name) > 1}):
        yield f"classes are repeated: {', '.join(repeated)}"
    for name in spec.classes:
        if "/" in name or "\\" in name or name in (".", ".."):
            yield f"class {name!r} is not a plain name"
    mappings = {"titles": spec.titles} | {f"release of {part}": held for part, held in spec.release.items()}
    for key, names in mappings.items():
        if unknown := sorted(set(names) - set(spec.classes)):
            yield f"{key} names classes that are not in 'classes': {', '.join(unknown)}"
        if key != "titles" and (missing := [name for name in spec.classes if name not in names]):
            yield f"{key} lacks {', '.join(missing)}"


def _split_problems(spec):
    if spec.splits and set(spec.splits) != set(SPLITS):
        yield "splits needs both 'train' and 'held_out'"
    fixed = spec.folds.scheme == "fixed"
    if fixed and spec.layout != "phantom" and not spec.splits:
        yield "fixed folds need 'splits'"
    if spec.release and set(spec.release) != (set(SPLITS) if fixed or spec.splits else {"all"}):
        yield f"release must have {'train and held_out' if fixed or spec.splits else 'all'}"
    group = spec.layout == "phantom" or spec.table and spec.table.group
    if spec.folds.scheme == "stratified-group" and not group:
        yield "stratified-group folds need a table with a 'group' column"
    if spec.folds.scheme == "stratified" and spec.table and spec.table.group:
        yield "the table's 'group' column needs the scheme stratified-group: stratified folds would split groups"
