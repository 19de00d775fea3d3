"""The one exception that a user's mistake ends in."""


class UserError(Exception):
    """A mistake the user can mend: one sentence that names the file or key and the way out."""

    def _render_traceback_(self):
        """IPython's hook: a notebook shows the sentence alone, without a traceback."""
        return [f"{type(self).__name__}: {self}"]


def one_of(kind, given, known):
    """Return `given` if it is among `known`; otherwise raise a sentence that lists what is known.

    The nearest known name comes first, so that a typing slip is mended at a glance.
    """
    import difflib

    if given in known:
        return given
    near = difflib.get_close_matches(str(given), [str(k) for k in known], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"unknown {kind} {given!r}{hint} Known: {', '.join(map(str, known))}."
        if near
        else f"unknown {kind} {given!r}: known are {', '.join(map(str, known))}."
    )
