"""Find the images of a dataset: one row per image, whatever layout its release has."""

import csv
import difflib
import errno
import functools
import io
import os
import re
import stat
import unicodedata
import warnings
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd

from medq.datasets import dicom
from medq.datasets.spec import SPLITS
from medq.errors import UserError

COLUMNS = ("image_id", "path", "label", "group", "split")
NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow knows them, but needs another program
WORKBOOKS = {
    b"PK\3\4": "an Excel workbook or another archive",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"\x1f\x8b": "compressed",
}
IGNORED = ("thumbs.db", "desktop.ini", "dicomdir")  # of operating systems and DICOM media
SHOWN = 20  # offenders named in one sentence; the rest are counted


class DatasetWarning(UserWarning):
    """A dataset that can be used but differs from its release, or holds files that are not used."""


def dataset_root(spec, root=None):
    """The dataset's own folder: `root` (default: MEDQ_DATA) if it has the right name, or one of `spec.folder` below it.

    An archive may have been unpacked into a folder of its own name. Of several folders, the first that holds the
    table or a class folder is taken, so that the result is its own root. None for a phantom, which has no folder.
    """
    if spec.layout == "phantom":
        return None
    root = root or os.environ.get("MEDQ_DATA")
    if not root:
        raise UserError(
            f"{spec.name} needs images: set the environment variable MEDQ_DATA, or data_root in the profile, "
            f"to the folder that holds {spec.folder[0]!r}."
        )
    root = Path(os.path.expanduser(root))
    names = [Path(folder).parts for folder in spec.folder]
    itself = any(
        way.parts[-len(parts) :] == parts for way in (root.absolute(), root.resolve()) for parts in names if parts
    )
    places = [*([root] if itself else []), *(at(root, folder) for folder in spec.folder)]
    places = [found for place in places for found in (place, place / place.name) if found.is_dir()]
    if not places:
        raise UserError(
            f"{spec.name} is not in {str(root)!r}: expected {' or '.join(map(repr, spec.folder))} there; "
            "set MEDQ_DATA, or data_root in the profile, to the folder that holds it."
        )
    return next((place for place in places if holds(spec, place)), places[0])


def holds(spec, place):
    """Whether the folder `place` holds the table or a class folder of the dataset."""
    if spec.layout == "table":
        return _table_file(spec, place) is not None
    return any(folder.is_dir() for folder in _class_folders(spec, place).values())


def at(root, relative):
    """`root / relative`, where a file system may spell accents in Unicode's other normal form."""
    path = Path(root)
    for part in Path(relative).parts:
        same = () if (path / part).exists() else [e.name for e in _entries(path) if composed(e.name) == composed(part)]
        path /= same[0] if same else part
    return path


def composed(name):
    """`name` in Unicode's composed form (NFC), in which names are compared."""
    return unicodedata.normalize("NFC", name)


def index(spec, root=None):
    """One row per image, sorted by image_id.

    Parameters: `spec`, a DatasetSpec; `root`, the data root or the dataset's own folder (default: MEDQ_DATA).
    Returns a DataFrame [image_id (str, unique, the same wherever the data lies and whatever the files' suffix),
    path (str), label (int, position in spec.classes), group (str; the image_id where the dataset has no groups),
    split ("train", "held_out", or "" where the release has no split)]. Raises UserError that names every offender.
    Warns (DatasetWarning) of other numbers of images than the release's, of files that are not read, by suffix and
    count, of images that a table does not list and, where no release is known, of images outside the pattern.
    Only files without a known suffix are opened.
    """
    if spec.layout == "phantom":
        from medq.datasets import phantoms

        return phantoms.index(spec)
    root = dataset_root(spec, root)
    problems, notes = [], []
    rows = (_folder_rows if spec.layout == "folders" else _table_rows)(spec, root, problems, notes)
    problems += _empty_classes(spec, rows, root)  # often a consequence of another problem, but named all the same
    for note in notes:
        warnings.warn(f"{spec.name}: {note}", DatasetWarning, stacklevel=2)
    if problems:
        raise UserError(f"{spec.name} in {str(root)!r}: {'; '.join(problems)}.")
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"label": "int64"})
    frame = frame.sort_values("image_id", kind="stable", ignore_index=True)
    table = counts(spec, frame)
    wrong = table[table["found"] != table["release"]].to_dict("records") if spec.release else []
    if wrong:
        totals = f"{table['found'].sum()} images, the release has {table['release'].sum()}"
        split = {part: f" ({part})" for part in SPLITS}
        where = [f"{row['class']}{split.get(row['split'], '')} {row['found']} of {row['release']}" for row in wrong]
        warnings.warn(f"{spec.name}: {totals}: {', '.join(where)}", DatasetWarning, stacklevel=2)
    return frame


def named(offenders):
    """`offenders` as text: the first 20 in order, and how many more there are."""
    offenders = sorted(map(str, offenders))
    more = f" and {len(offenders) - SHOWN} more" if len(offenders) > SHOWN else ""
    return ", ".join(map(repr, offenders[:SHOWN])) + more


def counts(spec, frame):
    """Images found and released: DataFrame [split, class, found, release] (release 0 where unknown)."""
    parts = list(spec.release) or (list(SPLITS) if spec.splits else ["all"])
    found = Counter(zip(frame["split"].replace("", "all"), frame["label"], strict=True))
    rows = [
        (part, name, found[part, label], spec.release.get(part, {}).get(name, 0))
        for part in parts
        for label, name in enumerate(spec.classes)
    ]
    return pd.DataFrame(rows, columns=["split", "class", "found", "release"])


# Which files are images


@functools.cache
def image_suffixes():
    """Suffixes of the formats that are read: all that Pillow decodes, and DICOM."""
    from PIL import Image

    known = Image.registered_extensions().items()  # loads Pillow's plugins
    return {suffix for suffix, name in known if name in Image.OPEN and name not in NOT_DECODED} | set(dicom.SUFFIXES)


def suffix_of(name):
    """The suffix of a format that is read, in lower case, else an empty string: `1.2.840.5` has none."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix in image_suffixes() else ""


def stem_of(name):
    """`name` without the suffix of an image format."""
    return name[: len(name) - len(suffix_of(name))]


def _is_image(path):
    """Whether the suffix, or else the content, is that of a format that is read."""
    from PIL import Image

    if suffix_of(path):
        return True
    try:
        formats = [name for name, (_, accepts) in Image.OPEN.items() if accepts and name not in NOT_DECODED]
        if not dicom.is_dicom(path):
            Image.open(path, formats=formats).close()
        return True
    except Exception:  # Pillow's plugins raise almost anything on foreign files
        return False


def _entries(folder, problems=None):
    """What lies in `folder`, sorted; nothing if it is absent or, as `problems` are told, cannot be read."""
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        if problems is not None and not isinstance(error, FileNotFoundError):
            problems.append(f"{_shown(folder)} cannot be read ({_reason(error)})")
        return []


def _scan(folder, problems, pattern="*"):
    """What lies directly in `folder`, hidden files apart, as {"images": paths that match `pattern` in either case,
    "unmatched": names of other images, "others": names of files that are not read, "folders": those that hold images}.
    """
    found, broken = {"images": [], "unmatched": [], "others": [], "folders": []}, []
    pattern = re.sub(r"([?[])", r"[\1]", pattern.lower())  # only * has a meaning
    for entry in _entries(folder, problems):
        if entry.name.startswith(".") or entry.name.lower() in IGNORED:
            continue
        matches = fnmatch(composed(entry.name).lower(), pattern)
        try:
            if entry.is_dir():
                found["folders"] += [entry.name] if _holds_images(entry.path) else []
                continue
            entry.path.encode()
            if not stat.S_ISREG(os.stat(entry.path).st_mode):  # reading a pipe would never end
                raise OSError(errno.EINVAL, "not a file")
            kind = "others" if not _is_image(entry.path) else "images" if matches else "unmatched"
            found[kind].append(entry.path if kind == "images" else entry.name)
        except (OSError, UnicodeEncodeError) as error:
            broken += [f"{_shown(entry.path)} ({_reason(error)})"] if suffix_of(entry.name) and matches else []
    if broken:
        problems.append(f"unreadable: {named(broken)}")
    return found


def _holds_images(folder):
    return any(os.path.isfile(entry.path) and _is_image(entry.path) for entry in _entries(folder)[:SHOWN])


def _shown(path):
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _reason(error):
    if isinstance(error, UnicodeEncodeError):
        return "its name is not UTF-8"
    known = {errno.ELOOP: "a loop of symbolic links", errno.ENOENT: "a symbolic link that leads nowhere"}
    return known.get(error.errno, error.strerror)


def _not_read(place, names):
    """A note on files that are not read: their suffixes and how many there are of each."""
    suffixes = Counter("".join(Path(name).suffixes[-2 if name.endswith(".gz") else -1 :]) for name in names)
    listed = ", ".join(f"{n} {suffix or 'without a suffix'}" for suffix, n in sorted(suffixes.items()))
    return [f"left out in {place!r}, in formats that are not read: {listed}"] if names else []


# Layout `folders`


def _class_folders(spec, root):
    """{(part, label): the folder where the pattern says that images of a class lie}."""
    folder = spec.pattern.rpartition("/")[0]
    return {
        (part, label): at(root, folder.replace("{split}", spec.splits.get(part, "")).replace("{class}", name))
        for part in (SPLITS if spec.splits else ("",))
        for label, name in enumerate(spec.classes)
    }


def _folder_rows(spec, root, problems, notes):
    taken, last, files = _class_folders(spec, root), spec.pattern.split("/")[-1], []
    for (part, label), folder in taken.items():
        found, place = _scan(folder, problems, last), folder.relative_to(root).as_posix()
        files += [(path, label, part) for path in found["images"]]
        notes += _not_read(place, found["others"])
        if found["folders"] and not spec.release:  # of a known release it is known what else it holds
            below = named(found["folders"])
            notes.append(f"left out in {place!r}, in folders below; the pattern covers one level: {below}")
        if found["unmatched"] and not spec.release:
            notes.append(f"left out in {place!r}, as they do not match {last!r}: {named(found['unmatched'])}")
    notes += [] if spec.release else _other_classes(spec, root, set(taken.values()))
    # ids are paths without suffix, so that re-encoded copies keep them; with it if ambiguous
    whole = [Path(path).relative_to(root).as_posix() for path, _, _ in files]
    stems = [composed(stem_of(name)) for name in whole]
    repeated = Counter(stems)
    ids = [composed(name) if repeated[stem] > 1 else stem for name, stem in zip(whole, stems, strict=True)]
    ids = ids if len(set(ids)) == len(ids) else whole
    return [(image_id, path, label, image_id, part) for image_id, (path, label, part) in zip(ids, files, strict=True)]


def _other_classes(spec, root, taken):
    """A note on folders with images that stand where class folders do."""
    pieces = spec.pattern.split("/")
    below = pieces[pieces.index("{class}") + 1 : -1] if "{class}" in pieces else None
    if below is None:
        return []
    parents = {folder.parents[len(below)] for folder in taken}
    found = {Path(entry.path) for parent in parents for entry in _entries(parent) if not entry.name.startswith(".")}
    others = [path for path in found if path.joinpath(*below) not in taken and _holds_images(path.joinpath(*below))]
    others = [path.relative_to(root).as_posix() for path in others]
    return [f"left out, since they are no class: {named(others)}"] if others else []


def _empty_classes(spec, rows, root):
    """Problems: classes without an image, where images of the first were expected, and what is there instead."""
    present = {(row[4], row[2]) for row in rows}
    for part in SPLITS if spec.splits else ("",):
        empty = [label for label in range(len(spec.classes)) if (part, label) not in present]
        if not empty:
            continue
        names = [spec.classes[label] for label in empty]
        if spec.layout == "table":
            why = f"no usable row has {names[0]!r} as its {spec.table.label}"
        else:
            folder = _class_folders(spec, root)[part, empty[0]]
            while not folder.parent.is_dir() and folder.parent != root:
                folder = folder.parent  # the first part of the way that is missing
            place, last = folder.relative_to(root).as_posix(), spec.pattern.split("/")[-1]
            beside = named(e.name for e in _entries(folder.parent) if os.path.isdir(e.path)) or "none"
            n = len(_entries(folder))
            why = f"{place!r} holds {n} files and folders, none of them an image that matches {last!r}"
            why = why if folder.is_dir() else f"there is no folder {place!r}; in its place: {beside}"
        where = f" in {spec.splits[part]}" if part else ""
        yield f"no images{where} of {', '.join(map(repr, names))} ({why})"


# Layout `table`


def _table_rows(spec, root, problems, notes):
    table, file = spec.table, _table_file(spec, root)
    if file is None:
        beside = [e.name for e in _entries(root) if os.path.isfile(e.path) and not suffix_of(e.name)]
        book = next((name for name in beside if name.lower().endswith((".xlsx", ".xls", ".ods"))), None)
        way_out = f"put it there, or name it in `table.file`; in its place: {named(beside) or 'none'}"
        if book:
            way_out = f"{book!r} is a workbook: save its sheet as a CSV file called {table.file!r}"
        raise UserError(f"{spec.name} in {str(root)!r}: the table {table.file!r} is missing; {way_out}.")
    frame = _read_table(file, [name for name in (table.image, table.label, table.group, table.split) if name])
    _check_table(spec, file, frame, problems)
    places = {folder: at(root, folder) for folder in table.folders}
    if not any(place.is_dir() for place in places.values()):
        beside = named(entry.name for entry in _entries(root) if os.path.isdir(entry.path)) or "none"
        raise UserError(
            f"{spec.name} in {str(root)!r}: the image folder {' or '.join(map(repr, places))} is missing; put it there, "
            f"or name it in `table.folders`; in its place: {beside}."
        )
    exact, stems, deeper = {}, {}, []  # of several folders the first that has an image wins
    for folder, place in places.items():
        found, of_folder = _scan(place, problems), {}
        notes += _not_read(folder, [name for name in found["others"] if place / name != file])
        deeper += [(Path(folder) / name).as_posix() for name in found["folders"]]
        for path in found["images"]:
            exact.setdefault(composed(Path(path).name), path)
            of_folder.setdefault(composed(stem_of(Path(path).name)), []).append(path)
        stems = of_folder | stems
    paths = {name: [exact[name]] if name in exact else stems.get(name, []) for name in frame[table.image]}
    deeper = [folder for folder in deeper if folder not in table.folders]
    problems += _mismatches(file, table, paths, [*exact, *stems], deeper)
    listed = {*paths, *(name for name in exact if stem_of(name) in paths and stem_of(name) not in exact)}
    unlisted = {Path(path).name for name, path in exact.items() if name not in listed}
    if unlisted and not problems:
        notes.append(f"left out, since {file.name} has no row for them: {named(unlisted)}")
    labels = {name: label for label, name in enumerate(spec.classes)}
    parts = {value: part for part, value in spec.splits.items()}
    rows = []
    for row in frame.to_dict("records"):
        name, label = row[table.image], labels.get(row[table.label])
        part = parts.get(row[table.split]) if table.split else ""
        if paths[name] and label is not None and part is not None:
            rows.append((name, paths[name][0], label, row[table.group] if table.group else name, part))
    return rows


def _table_file(spec, root):
    """The table: by its name, by an alternative, or by its stem with another suffix of a text table."""
    others = [os.path.splitext(spec.table.file)[0] + suffix for suffix in (".csv", ".tab", ".tsv", ".txt")]
    names = [spec.table.file, *spec.table.alternatives, *others]
    return next((path for name in names if (path := at(root, name)).is_file()), None)


def _mismatches(file, table, paths, known, deeper):
    """Problems between the names of a table, {name: files}, and the names of files that are `known`.

    `deeper` names folders with images that are not looked into.
    """
    missing = [name for name, found in paths.items() if name and not found]
    if missing:
        folders, hint = " or ".join(table.folders), _near(missing, known)
        if deeper and not hint:
            hint = f" (there are images in {named(deeper)}: name each folder in `table.folders`)"
        elif known and not hint and len(missing) == len(paths):
            hint = f" (the files have names like {known[0]!r})"
        yield f"{file.name} names images without a file in {folders}: {named(missing)}{hint}"
    several = [name for name, found in paths.items() if len(found) > 1]
    if several:
        yield f"two files for one image: {named(several)}"
    used = Counter(found[0] for found in paths.values() if found)
    twice = [Path(path).name for path, n in used.items() if n > 1]
    if twice:
        yield f"{file.name} names images with and without their suffix: {named(twice)}"


def _bare(name):
    return re.split(r"[/\\]", name)[-1].lower()


def _number(name):
    """`name` without what spreadsheets change: leading zeros, a decimal point, an exponent."""
    stem = stem_of(_bare(name))
    try:
        return repr(float(stem))
    except ValueError:
        return re.sub(r"0+(?=\d)", "", re.sub(r"\.0+$", "", stem))


SPELLINGS = (  # what may differ between the name in a table and the file's, and a key that ignores it
    ("names are the files' own, without folder and in the same case", _bare),
    ("the files have another suffix", lambda name: stem_of(stem_of(_bare(name)))),
    ("zeros or a decimal point were changed, as spreadsheets do: save the column as text", _number),
    ("spaces or signs differ", lambda name: re.sub(r"[\W_]+", "", stem_of(_bare(name)))),
)


def _near(missing, known):
    """A hint on the first spelling under which a missing name is that of a file, or the nearest name."""
    for reason, key in SPELLINGS:
        names = {key(name): name for name in reversed(known)}
        near = next(((name, names[key(name)]) for name in missing if key(name) in names), None)
        if near:
            return f" ({reason}; {near[1]!r} is there, {near[0]!r} is not)"
    near = difflib.get_close_matches(missing[0], known, n=1, cutoff=0.8)
    return f" (nearest to {missing[0]!r} is {near[0]!r})" if near else ""


def _read_table(file, columns):
    """The wanted `columns` of a text table as text, indexed by row number, without empty rows.

    Separated by commas, tabs, semicolons or bars. Raises UserError on what is not a table or lacks a column.
    """
    try:
        content = file.read_bytes()
        for magic, what in WORKBOOKS.items():
            if content.startswith(magic):
                raise UserError(f"{str(file)!r} is {what}, not text: save its sheet as a CSV file.")
        if b"\0" in content:  # UTF-16
            raise UnicodeError
        rows = _split(content.decode("utf-8-sig"), columns)
    except UnicodeError:
        raise UserError(f"{str(file)!r} is not UTF-8: save it with that encoding.") from None
    except (OSError, csv.Error) as error:
        raise UserError(f"{str(file)!r} is not a readable CSV table ({error}).") from None
    if not rows:
        raise UserError(f"{str(file)!r} is not a readable CSV table (it is empty).")
    (_, header), *rows = rows
    lacking = [name for name in columns if name not in header]
    repeated = [name for name in columns if header.count(name) > 1]
    if lacking or repeated:
        problem = f"lacks the column {named(lacking)}" if lacking else f"has {named(repeated)} twice"
        way_out = "Column names are case-sensitive; change `table` in params/datasets.yaml, or the file."
        raise UserError(f"{str(file)!r} {problem}: its columns are {named(header)}. {way_out}")
    long = [f"row {number}" for number, row in rows if any(row[len(header) :])]
    if long:
        raise UserError(
            f"{str(file)!r} is not a readable CSV table (more than {len(header)} entries in {named(long)}); every row needs "
            "as many entries as the first, with quotes around those that hold a separator."
        )
    cells = [(row + [""] * len(header))[: len(header)] for _, row in rows]
    return pd.DataFrame(cells, index=[number for number, _ in rows], columns=header, dtype=str)[columns]


def _split(text, columns):
    """[(row number, cells)] of the rows that are not empty, split by the separator that yields most of `columns`."""

    def split(separator):
        number, rows = 0, csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        try:
            for number, row in enumerate(rows, start=1):  # noqa: B007
                row = [composed(cell.strip()) for cell in row]
                if any(row):
                    yield number, row
        except csv.Error as error:
            raise csv.Error(f"row {number + 1}: {error}; see that its quotation marks come in pairs") from None

    def fitting(separator):
        try:
            header = next(split(separator), (0, []))[1]
        except csv.Error:  # quotes that this separator does not fit
            header = []
        return len(set(columns) & set(header)), len(header)

    return list(split(max(",\t;|", key=fitting)))


def _check_table(spec, file, frame, problems):
    table = spec.table
    for column in frame.columns:
        empty = [f"row {number}" for number in frame.index[frame[column] == ""]]
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
    if not table.group:
        return
    groups = frame[frame[table.group] != ""].groupby(table.group)
    mixed = groups[table.label].nunique() > 1
    if mixed.any() and not table.mixed_groups:
        problems.append(
            f"{file.name} gives more than one {table.label} to the {table.group} {named(mixed.index[mixed])}"
        )
    torn = groups[table.split].nunique() > 1 if spec.folds.scheme == "fixed" else mixed[:0]
    if torn.any():
        problems.append(
            f"{file.name} has the {table.group} {named(torn.index[torn])} on both sides of its {table.split}; the scheme "
            "stratified-group makes folds that keep groups whole"
        )
