"""Output to a terminal, which never acts on what a name, a reason or an error holds."""

from __future__ import annotations

import typer


def printable(text: str) -> str:
    """Escape what a terminal would act on, or a reader would not see: control and format characters, bidi marks.

    Line breaks are escaped too, so that a name stays in its line. A list of keys must show what a key is called, and
    not what its name makes of the screen.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def show(*lines: str, err: bool = False) -> None:
    """Print lines, each as it is and in one line."""
    for line in lines:
        typer.echo(printable(line), err=err)
