"""Untrusted text, such as a file's name, made safe for terminals (control codes) and spreadsheets (formulas).

print(printable(name))
writer.writerow(map(as_cell, row)); row = [from_cell(cell) for cell in reader]
"""

from __future__ import annotations

import re

_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # with apostrophes before it too, so that each added apostrophe can be removed


def printable(text: str) -> str:
    """The text with a replacement character for each that is not printed: control codes, changes of direction."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def as_cell(value: object) -> object:
    """A cell of a CSV file: text that a spreadsheet would read as a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def from_cell(cell: str) -> str:
    """Undo `as_cell`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
