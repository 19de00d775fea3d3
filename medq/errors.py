"""The exception for every failure that a user can cause."""

import difflib
import unicodedata


class UserError(Exception):
    """An error that the user can correct: one sentence that names the file or key and the way out."""

    def _render_traceback_(self):
        """IPython's hook: a notebook shows the sentence alone, without a traceback."""
        return [f"{type(self).__name__}: {self}"]


def one_of(kind, given, known):
    """Return `given`, if need be in Unicode's composed form, if it is among `known`; raise a sentence with them otherwise.

    The nearest known name comes first.
    """
    for name in (given, unicodedata.normalize("NFC", str(given))):
        if name in known:
            return name
    near = difflib.get_close_matches(str(given), [str(k) for k in known], n=1)
    listed = ", ".join(map(str, known))
    hint = f"; did you mean {near[0]!r}? Known: {listed}." if near else f": known are {listed}."
    raise UserError(f"unknown {kind} {given!r}{hint}")


def first_line(error):
    """The first line of an exception's message, without a full stop, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
