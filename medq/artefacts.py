"""Files that are either whole or absent, and the completion record that makes a folder count.

Every artefact is written to a temporary name beside its target, flushed to disk and renamed. `done.json` comes last,
with a checksum of every other file: a folder without it, or whose files no longer match it, is treated as absent.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from medq.errors import UserError

DONE = "done.json"
FAILED = "failed.json"  # written by a batch where a cell failed: the reason, and the notebook that shows it
STATUSES = ("done", "unsupported")
FULL = 1 << 20  # bytes: a disk with less than this counts as full when a write has failed


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside `path`; on success flush it and rename it to `path`, on any error delete it.

    Raises `UserError` when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except UserError:
        raise
    except Exception as error:  # writers of other libraries report a full disk in ways of their own
        why = (error.strerror or error) if isinstance(error, OSError) else "No space left on device"
        full = path.parent.is_dir() and shutil.disk_usage(path.parent).free < FULL
        if not isinstance(error, OSError) and not full:
            raise
        way_out = "free space or choose another folder with MEDQ_RUNS, then run the same command again"
        raise UserError(f"cannot write {path}: {why}; {way_out}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write `text` (UTF-8) whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Write `value` as indented JSON with sorted keys."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_csv(path, frame):
    """Write a DataFrame as CSV without its index; floats keep every digit."""
    write_text(path, frame.to_csv(index=False))


def write_parquet(path, frame):
    """Write a DataFrame as zstd-compressed parquet."""
    with replacing(path) as temporary:
        frame.to_parquet(temporary, index=False, compression="zstd")


def sha256(path):
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finish(folder, names, status="done", **facts):
    """Write `done.json` for `folder`: status, the facts given, and a checksum of each file in `names`."""
    files = {name: sha256(Path(folder) / name) for name in sorted(names)}
    write_json(Path(folder) / DONE, {"status": status, "files": files, **facts})


def read_json(path):
    """The content of a JSON file, or None where it is absent or unreadable."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def record(folder):
    """The content of `done.json`, or None where it is absent or unreadable."""
    value = read_json(Path(folder) / DONE)
    whole = isinstance(value, dict) and value.get("status") in STATUSES and isinstance(value.get("files"), dict)
    return value if whole else None


def failure(folder):
    """The content of `failed.json` ({reason, notebook}), or None where it is absent or unreadable."""
    value = read_json(Path(folder) / FAILED)
    return value if isinstance(value, dict) else None


def damage(folder, *, names=None, quick=False):
    """Why `folder` does not count as finished, in a few words; empty if it does.

    `names` limits the check to some of its files. `quick` reads only files whose time of change is later than the
    record's, so that hundreds of checkpoints need not be read again.
    """
    facts = record(folder)
    if facts is None:
        return "no completion record"
    written = (Path(folder) / DONE).stat().st_mtime_ns
    for name, digest in facts.get("files", {}).items():
        if names is not None and name not in names:
            continue
        path = Path(folder) / name
        if not path.is_file():
            return f"{name} is missing"
        if not (quick and path.stat().st_mtime_ns <= written) and sha256(path) != digest:
            return f"{name} does not match its checksum"
    return ""


def is_finished(folder, key=None):
    """True if `folder` is complete and undamaged and, where `key` is given, was made with that key."""
    facts = record(folder)
    return facts is not None and (key is None or facts.get("key") == key) and not damage(folder)
