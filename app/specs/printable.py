"""Text of somebody else on one line of a terminal, a log or a document."""

import re

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line separators, marks that reverse the direction of what follows, and half characters."""


def printable(text: str) -> str:
    r"""``text`` with these characters as escapes, such as ``\n``, and ``\x1b`` for what begins a terminal's command."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_lines(text: str) -> str:
    """`printable` of every line of a text whose line feeds are meant."""
    return "\n".join(map(printable, text.split("\n")))
