"""Reading and validating the project's YAML files: mappings of plain data, checked against a pydantic model.

A mistake is a `UserError` of one sentence that names the file and every wrong key.
"""

import difflib
import functools
import re
import typing
import unicodedata
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from medq.errors import UserError

RESERVED = ("data", "latency", "collect", "logs", "all", "mean", "cnn", "transformer")  # folders and rows of a batch
LONGEST = 200  # bytes of a name: file systems take 255, and files are made of a name and more
SHOWN = 5  # mistakes named in one sentence; the rest are counted

KINDS = {  # pydantic's error types, where its own message would not help
    "string_type": "must be text, in quotes where YAML reads it as something else (numbers, yes, no, null)",
    "tuple_type": "must be a list, like [a, b]",
    "list_type": "must be a list, like [a, b]",
    "dict_type": "must hold keys and values of its own",
    "model_type": "must hold keys and values of its own",
}


class Model(BaseModel):
    """Base of every validated mapping: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def validate(model, value, source):
    """Return `value` as an instance of `model`; raise `UserError` naming `source` and every wrong key."""
    try:
        return model.model_validate(value)
    except UserError as error:  # of a part that is checked with another model
        raise UserError(f"{source}: {error}") from None
    except ValidationError as error:
        mistakes = list(_mistakes(model, error))
        more = f" ({len(mistakes) - SHOWN} more mistakes follow)" if len(mistakes) > SHOWN else ""
        raise UserError(f"{source}: {'; '.join(mistakes[:SHOWN]).removesuffix('.')}{more}.") from None
    except RecursionError:
        raise UserError(f"{source}: the file is nested too deeply or refers to itself.") from None


def _mistakes(model, error):
    """A clause for each entry of `ValidationError.errors()`: the key, what is wrong, the value or the nearest known key."""
    found = error.errors()
    wrong = {item["loc"][:-1] for item in found if len(item["loc"]) > 1}
    for item in found:
        if item["type"] == "too_short" and item["loc"] in wrong:
            continue  # too short only without its wrong items, which are named already
        place = ".".join(str(part) for part in item["loc"] if "[" not in str(part))  # "[": the member of a union
        if item["type"] == "extra_forbidden":
            known = _keys_at(model, item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            yield f"unknown key {place!r} ({hint})"
            continue
        message = KINDS.get(item["type"], item["msg"].removeprefix("Value error, "))
        whole = item["type"] == "missing" or item["type"] == "value_error" and isinstance(item["input"], dict)
        given = "" if whole else f", not {str(item['input'])[:60]!r}"
        yield f"{place + ': ' if place else ''}{message[:1].lower()}{message[1:]}{given}"


def _keys_at(model, location):
    """The keys that the mapping at `location` (names of keys, from `model` downwards) may have."""
    models = [model]
    for part in location:
        ahead, below = [found.model_fields[part].annotation for found in models if part in found.model_fields], []
        while ahead:
            annotation = ahead.pop()
            ahead += typing.get_args(annotation)
            below += [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
        models = below or models
    return [name for found in models for name in found.model_fields if name != "name"]  # an entry's name is its key


class _Loader(yaml.SafeLoader):
    """Plain YAML in which `1e-4` is a number and a repeated key is an error; YAML would silently keep the last."""

    def compose_mapping_node(self, anchor):
        node, seen = super().compose_mapping_node(anchor), set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is repeated", problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path):
    """Return the mapping in a YAML file; raise `UserError` where it is missing, not YAML, or not a mapping."""
    path = Path(path)
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f" Beside it: {', '.join(near)}." if near else ""
        raise UserError(f"{path}: no such file.{hint}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; save it as UTF-8.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}: is not valid YAML{where}: {getattr(error, 'problem', None) or error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a mapping of keys to values, not {type(value).__name__}.")
    return value


def check_name(name):
    """Return the name of a catalogue's entry in Unicode's composed form; raise `UserError` if no folder can have it."""
    if not isinstance(name, str):
        raise UserError(f"the name of an entry reads as {name!r}; put it in quotes, so that it is text.")
    wrong = name in RESERVED or name != name.strip() or len(name.encode(errors="replace")) > LONGEST
    if wrong or not re.fullmatch(r"[^-./\\,={}*?<>\s][^/\\,={}*?<>\x00-\x1f\x7f\ud800-\udfff]*", name):
        raise UserError(
            f"{name[:80]!r} is not a valid name (it becomes a folder): start with a letter or digit, without "
            f"/ \\ , = {{ }} * ? < > or control characters in it, at most {LONGEST} bytes, and not {', '.join(RESERVED)}."
        )
    return unicodedata.normalize("NFC", name)


def catalogue(path, model):
    """Entries of a catalogue in the file's order: {name: model}. A model with a field `name` is given the entry's.

    Raises `UserError` that lists the mistakes of all entries. A file that has not changed is not read again: a batch asks
    for the same catalogues hundreds of times.
    """
    stat = path.stat() if path.is_file() else None
    return dict(_catalogue(path, model, stat and (stat.st_mtime_ns, stat.st_size, stat.st_ino)))


@functools.lru_cache
def _catalogue(path, model, _state):
    entries, mistakes = {}, []
    for name, entry in read_yaml(path).items():
        named = isinstance(entry, dict) and "name" in model.model_fields
        try:
            name = check_name(name)
            if named and "name" in entry:
                raise UserError(f"{name}: must not have a key 'name' of its own.")
            entries[name] = validate(model, entry | {"name": name} if named else entry, name)
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UserError(f"{path}: {' '.join(mistakes)}")
    return entries
