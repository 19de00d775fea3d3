"""Find the images of a dataset: one row per image, whatever layout its release has."""

import difflib
import errno
import os
import stat
import warnings
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd

from medq.errors import UserError

COLUMNS = ("image_id", "path", "label", "group", "split")
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"))
MEDICAL_SUFFIXES = (".dcm", ".dicom", ".nii", ".nii.gz", ".nrrd", ".mha")  # formats that are not read
SHOWN = 20  # offenders named in one sentence; the rest are counted


class DatasetWarning(UserWarning):
    """A dataset that can be used but is not what its release holds."""


def dataset_root(spec, data_root=None):
    """The folder that holds the dataset's images.

    Looks below `MEDQ_DATA` where that is set, else below `data_root` (the profile's), for the first of
    `spec.folder` that exists; a folder that itself has one of these names is taken as it is. None for a
    phantom. Raises UserError that names both ways to say where the data is.
    """
    if spec.layout == "phantom":
        return None
    given = os.environ.get("MEDQ_DATA") or data_root
    if not given:
        raise UserError(
            f"{spec.name} needs images: set the environment variable MEDQ_DATA, or data_root in the profile, "
            f"to the folder that holds {spec.folder[0]!r}."
        )
    return below(spec, Path(given).expanduser())


def below(spec, root):
    """The dataset's own folder: one of `spec.folder` below `root`, or `root` itself if it is one."""
    for folder in spec.folder:
        if (root / folder).is_dir():
            return root / folder
    if root.is_dir() and any(root.resolve().match(folder) for folder in spec.folder):
        return root
    raise UserError(
        f"{spec.name} is not in {str(root)!r}: expected {' or '.join(map(repr, spec.folder))} there; "
        "set MEDQ_DATA, or data_root in the profile, to the folder that holds it."
    )


def index(spec, root=None):
    """One row per image, sorted by image_id.

    Parameters: `spec`, a DatasetSpec; `root`, the data root or the dataset's own folder (default: MEDQ_DATA).
    Returns a DataFrame [image_id (str, unique, the same wherever the data lies and whatever the files'
    suffix), path (str), label (int, position in spec.classes), group (str; the image_id where the dataset has
    no groups), split ("train", "held_out", or "" where the release has no split)]. Files that are no images
    (masks' folders, text, thumbnails' databases) are passed over; images are not opened. Raises UserError
    that names every offender at once. Warns (DatasetWarning) of fewer images than the release's; where no release is
    known, of images in folders that the pattern passes over; and of images that a table does not list.
    """
    if spec.layout == "phantom":
        from medq.datasets import phantoms

        return phantoms.index(spec)
    root = dataset_root(spec) if root is None else below(spec, Path(root))
    problems = []
    rows = (_folder_rows if spec.layout == "folders" else _table_rows)(spec, root, problems)
    # With a problem at hand an empty class is often its consequence; named it is all the same.
    problems += _empty_classes(spec, rows, root)
    if problems:
        raise UserError(f"{spec.name} in {str(root)!r}: {'; '.join(problems)}.")
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"label": "int64"})
    frame = frame.sort_values("image_id", kind="stable", ignore_index=True)
    for message in shortfalls(spec, frame):
        warnings.warn(message, DatasetWarning, stacklevel=2)
    return frame


def named(offenders):
    """`offenders` as text: the first 20 in order, and how many more there are."""
    offenders = sorted(map(str, offenders))
    more = f" and {len(offenders) - SHOWN} more" if len(offenders) > SHOWN else ""
    return ", ".join(map(repr, offenders[:SHOWN])) + more


def counts(spec, frame):
    """Images found and released: DataFrame [split, class, found, release] (release 0 where unknown)."""
    parts = list(spec.release) or (["train", "held_out"] if spec.splits else ["all"])
    found = Counter(zip(frame["split"].replace("", "all"), frame["label"], strict=True))
    return pd.DataFrame(
        [
            (part, name, found[part, label], spec.release.get(part, {}).get(name, 0))
            for part in parts
            for label, name in enumerate(spec.classes)
        ],
        columns=["split", "class", "found", "release"],
    )


def shortfalls(spec, frame):
    """Sentences about fewer images than the public release holds: none, or one with both counts."""
    table = counts(spec, frame)
    short = table[table["found"] < table["release"]]
    if short.empty:
        return []
    where = [
        f"{row['class']}{'' if row['split'] == 'all' else ' (' + row['split'] + ')'} {row['found']} of {row['release']}"
        for _, row in short.iterrows()
    ]
    return [f"{spec.name}: {table['found'].sum()} images, the release has {table['release'].sum()}: {', '.join(where)}"]


def _empty_classes(spec, rows, root):
    parts = ("train", "held_out") if spec.splits else ("",)
    present = {(row[4], row[2]) for row in rows}
    for part in parts:
        empty = [name for label, name in enumerate(spec.classes) if (part, label) not in present]
        if empty:
            at = f" in {spec.splits[part]}" if part else ""
            yield f"no images{at} of {', '.join(map(repr, empty))} ({_why_empty(spec, root, part, empty[0])})"


def _why_empty(spec, root, part, name):
    """What was looked for in vain for the class `name`, and what is there instead."""
    if spec.layout == "table":
        return f"no usable row has {name!r} as its {spec.table.label}"
    folder, last = _class_folder(spec, root, part, name), spec.pattern.split("/")[-1]
    while not folder.parent.is_dir() and folder.parent != root:
        folder = folder.parent  # the first part of the way that is missing
    place = folder.relative_to(root).as_posix()
    if not folder.is_dir():
        beside = [entry.name for entry in _entries(folder.parent) if os.path.isdir(entry.path)]
        return f"there is no folder {place!r}; in its place: {named(beside) if beside else 'none'}"
    return (
        f"{place!r} holds {len(_entries(folder))} files and folders, none of them an image "
        f"({', '.join(sorted(IMAGE_SUFFIXES))}) that matches {last!r}"
    )


def _class_folder(spec, root, part, name):
    """Where the pattern says that images of the class `name` lie."""
    pieces = spec.pattern.split("/")[:-1]
    return root.joinpath(*(p.replace("{class}", name).replace("{split}", spec.splits.get(part, "")) for p in pieces))


def _passed_over(spec, root):
    """Sentences about what looks like images of the dataset and is not taken: other patterns, formats, levels, classes."""
    last, found = spec.pattern.split("/")[-1], {}
    taken = {_class_folder(spec, root, part, name) for part in spec.splits or ("",) for name in spec.classes}
    for folder in sorted(taken):
        for entry in _entries(folder):
            place, suffix = folder.relative_to(root).as_posix(), os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(MEDICAL_SUFFIXES):
                found.setdefault((place, f"in a format that is not read ({suffix}); save them as PNG"), []).append(
                    entry.name
                )
            elif os.path.isdir(entry.path) and _holds_images(entry.path):
                found.setdefault((place, "in folders below; the pattern looks at one level"), []).append(entry.name)
            elif suffix in IMAGE_SUFFIXES and os.path.isfile(entry.path) and not _matches(entry.name, last):
                found.setdefault((place, f"that do not match {last!r}"), []).append(entry.name)
    for (place, why), names in found.items():
        yield f"{spec.name}: left out in {place!r}, {why}: {named(names)}"
    pieces = spec.pattern.split("/")
    if "{class}" in pieces:
        below = pieces[pieces.index("{class}") + 1 : -1]
        others = {
            Path(entry.path)
            for parent in {folder.parents[len(below)] for folder in taken}
            for entry in _entries(parent)
            if not entry.name.startswith(".") and _holds_images(Path(entry.path, *below))
        }
        others = [path.relative_to(root).as_posix() for path in others if path.joinpath(*below) not in taken]
        if others:
            yield f"{spec.name}: left out, since they are no class: {named(others)}"


def _entries(folder):
    """What lies in `folder`, sorted; nothing where it cannot be read, which `_images` says."""
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []


def _holds_images(folder):
    return any(os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES for entry in _entries(folder))


def _matches(name, pattern):
    return fnmatch(name.lower(), pattern.lower())


def _images(folder, problems, pattern="*"):
    """Paths of the images directly in `folder` that match `pattern` (in either case), sorted; [] without such a folder."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(f"{_shown(folder)} cannot be read ({_reason(error)})")
        return []
    found, broken = [], []
    for entry in entries:
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix not in IMAGE_SUFFIXES or entry.name.startswith(".") or not _matches(entry.name, pattern):
            continue
        try:
            if entry.is_dir():
                continue
            entry.path.encode()
            if not stat.S_ISREG(os.stat(entry.path).st_mode):  # reading a pipe would never end
                broken.append(f"{_shown(entry.path)} (no file)")
                continue
        except (OSError, UnicodeEncodeError) as error:
            broken.append(f"{_shown(entry.path)} ({_reason(error)})")
        else:
            found.append(entry.path)
    if broken:
        problems.append(f"unreadable: {named(broken)}")
    return found


def _shown(path):
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _reason(error):
    if isinstance(error, UnicodeEncodeError):
        return "its name is not UTF-8"
    if error.errno == errno.ELOOP:
        return "a loop of symbolic links"
    return "a symbolic link that leads nowhere" if error.errno == errno.ENOENT else error.strerror


def _folder_rows(spec, root, problems):
    last, files = spec.pattern.split("/")[-1], []
    for part in ("train", "held_out") if spec.splits else ("",):
        for label, name in enumerate(spec.classes):
            files += [(path, label, part) for path in _images(_class_folder(spec, root, part, name), problems, last)]
    if not spec.release:  # of a known release it is known what is left out
        for message in _passed_over(spec, root):
            warnings.warn(message, DatasetWarning, stacklevel=3)
    ids = _relative_ids([path for path, _, _ in files], root)
    return [(image_id, path, label, image_id, part) for image_id, (path, label, part) in zip(ids, files, strict=True)]


def _relative_ids(paths, root):
    """Paths below `root` without suffix, so that re-encoded copies keep their ids; with it if ambiguous."""
    whole = [Path(path).relative_to(root).as_posix() for path in paths]
    stems = [os.path.splitext(name)[0] for name in whole]
    repeated = Counter(stems)
    ids = [name if repeated[stem] > 1 else stem for name, stem in zip(whole, stems, strict=True)]
    return ids if len(set(ids)) == len(ids) else whole


def _table_rows(spec, root, problems):
    table = spec.table
    columns = [name for name in (table.image, table.label, table.group, table.split) if name]
    file = next((root / name for name in (table.file, *table.alternatives) if (root / name).is_file()), None)
    if file is None:
        raise UserError(
            f"{spec.name} in {str(root)!r}: the table {table.file!r} is missing; put it there, or name it in `table.file`."
        )
    frame = _read_table(file, columns)
    _check_table(spec, file, frame, problems)
    where = {}
    for folder in reversed(table.folders):  # the first of the folders listed wins
        where |= _by_name(folder, _images(root / folder, problems), problems)
    missing = [name for name in frame[table.image] if name and name not in where]
    if missing:
        problems.append(
            f"{file.name} names images without a file in {' or '.join(table.folders)}: "
            f"{named(missing)}{_almost(missing, where)}"
        )
    listed = [where[name] for name in frame[table.image].unique() if name in where]
    twice = [Path(path).name for path, n in Counter(listed).items() if n > 1]
    if twice:
        problems.append(f"{file.name} names images with and without their suffix: {named(twice)}")
    stems = {Path(path).stem for path in listed}
    unlisted = sorted({Path(path).name for path in where.values() if Path(path).stem not in stems})
    if unlisted and not problems:
        warnings.warn(
            f"{spec.name}: left out, since {file.name} has no row for them: {named(unlisted)}",
            DatasetWarning,
            stacklevel=3,
        )
    labels = {name: label for label, name in enumerate(spec.classes)}
    parts = {value: part for part, value in spec.splits.items()}
    rows = []
    for row in frame.to_dict("records"):
        name, label = row[table.image], labels.get(row[table.label])
        part = parts.get(row[table.split]) if table.split else ""
        if name in where and label is not None and part is not None:
            rows.append((name, where[name], label, row[table.group] if table.group else name, part))
    return rows


def _almost(missing, where):
    """A hint where names would be found if they were written as the files are called, or nothing."""
    lower = {name.lower(): name for name in where}
    near = next((found for name in missing if (found := lower.get(Path(name).name.lower()))), None)
    return f" (names are the files' own, without folder and in the same case, such as {near!r})" if near else ""


def _read_table(file, columns):
    """The wanted `columns` of a CSV as text, without empty rows. Raises UserError on what is no table or lacks a column."""
    try:
        frame = pd.read_csv(file, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except UnicodeError:
        raise UserError(f"{str(file)!r} is not UTF-8: save it with that encoding.") from None
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        why = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        raise UserError(
            f"{str(file)!r} is not a readable CSV table ({why}); every row needs as many entries as the first, with "
            "commas between them and quotes around those that hold a comma."
        ) from None
    header = [str(name).strip() for name in frame.iloc[0]]
    lacking = [name for name in columns if name not in header]
    repeated = [name for name in columns if header.count(name) > 1]
    if lacking or repeated:
        problem = f"lacks the column {named(lacking)}" if lacking else f"has {named(repeated)} twice"
        other = next((sign for sign in (";", "\t", "|") if len(header) == 1 and sign in header[0]), None)
        near = difflib.get_close_matches(lacking[0].lower(), [name.lower() for name in header], n=1) if lacking else []
        hint = (
            f" Its columns are separated by {other!r}; save it with commas."
            if other
            else " Column names are case-sensitive; mend `table` in params/datasets.yaml, or the file."
            if near
            else ""
        )
        raise UserError(f"{str(file)!r} {problem}: its columns are {named(header)}.{hint}")
    frame = frame.iloc[1:].set_axis(header, axis=1).fillna("").apply(lambda column: column.astype(str).str.strip())
    return frame.loc[(frame != "").any(axis=1), columns]


def _check_table(spec, file, frame, problems):
    table = spec.table
    for column in frame.columns:
        empty = [f"row {number + 1}" for number in frame.index[frame[column] == ""]]
        if empty:
            problems.append(f"{file.name} has no {column} in {named(empty)}")
    ids = frame[table.image]
    repeated = sorted(set(ids[ids.duplicated() & (ids != "")]))
    if repeated:
        problems.append(f"{file.name} names images more than once: {named(repeated)}")
    known = {table.label: spec.classes, table.split: tuple(spec.splits.values())}
    for column, values in known.items():
        unknown = set(frame[column]) - set(values) - {""} if column else set()
        if unknown:
            problems.append(
                f"{file.name} has unknown values of {column}: {named(unknown)}; known are {', '.join(values)}"
            )
    if table.group and not table.mixed_groups:
        kinds = frame[frame[table.group] != ""].groupby(table.group)[table.label].nunique()
        if (kinds > 1).any():
            problems.append(
                f"{file.name} gives more than one {table.label} to the {table.group} {named(kinds.index[kinds > 1])}"
            )


def _by_name(folder, paths, problems):
    """{name with and without suffix: path}; two images of one name in a folder are a problem."""
    stems = Counter(Path(path).stem for path in paths)
    twice = [stem for stem, n in stems.items() if n > 1]
    if twice:
        problems.append(f"{folder} has two files for one image: {named(twice)}")
    return {name: path for path in paths for name in (Path(path).name, Path(path).stem)}
