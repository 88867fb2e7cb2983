"""Text of others, such as a file's name, where it is shown: it steers no terminal, and no spreadsheet runs it.

print(printable(name))
writer.writerow(map(as_cell, row)); row = [from_cell(cell) for cell in reader]
"""

from __future__ import annotations

import re

_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # with apostrophes in front of it too, so that each guard can be taken off


def printable(text: str) -> str:
    """The text with a replacement character for each that is not printed: control codes, changes of direction."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def as_cell(value: object) -> object:
    """A cell of a CSV file: what a spreadsheet would take for a formula has an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def from_cell(cell: str) -> str:
    """What `as_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
