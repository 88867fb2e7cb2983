"""Rules of the code that no linter here knows."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.python_files import ROOT, trees

MOST_POSITIONAL = 6
# Parameters in the order in which transformers calls them.
THEIR_SIGNATURES = {"eager_attention", "forward"}
# Folders of tests that mirror no room: whole programs, timings, what needs a GPU or stands in for one, recorded files.
NO_ROOM = {"scripts", "bench", "gpu", "standin", "golden"}

# Words that a reader has to translate, and the usual ones: the table of docs/design.md ("Words"), and words of another
# time. Regular expressions may match any word.
UNUSUAL_WORDS = {
    "anew": "again",
    "at hand": "available",
    "beside": "next to, or in addition to",
    "by lot": "at random",
    "goes on": "continues",
    "held against": "checked against",
    "laid into": "prefilled into",
    "mend": "fix",
    "seldom": "rarely",
    "spoken of": "stated",
    "suspected": "positive class",
    "text floors": "blind baselines",
    "thereby": "so",
    "to be had": "available",
    "told": "stated, given or reported",
    "way out": "remedy",
    "whoever": "anyone who",
}
# Sentences that datasets contain, and that the parser of claims has to read.
WORDS_OF_DATA = {("vlm_detect/measures/edges.py", "beside"), ("vlm_detect/nano/captions.py", "told")}


def unusual_words(source: str) -> Iterator[tuple[int, str]]:
    """(line, word) of each unusual word in a comment, a docstring, a message or a help text."""
    words = re.compile(rf"\b(?:{'|'.join(UNUSUAL_WORDS)})\b", re.IGNORECASE)
    comments = [
        (token.start[0], token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    strings = [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "(?:" not in node.value
    ]
    for line, text in comments + strings:
        for found in words.finditer(text):
            yield line + text[: found.start()].count("\n"), found[0]


def long_lists(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of each function with too many positional parameters; those of tests are fixtures."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("test_"):
            given = [*node.args.posonlyargs, *node.args.args]
            count = sum(argument.arg not in ("self", "cls") for argument in given)
            if count > MOST_POSITIONAL and node.name not in THEIR_SIGNATURES:
                yield node.lineno, node.name


def loads_of_pickles(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, call) of each `torch.load` that does not say `weights_only=True`: else a file may run code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if said.get("weights_only") != "True":
                yield node.lineno, ast.unparse(node)


RULES = (long_lists, loads_of_pickles)


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_holds(rule) -> None:
    assert [f"{path}:{line}: {what}" for path, tree in trees().items() for line, what in rule(tree)] == []


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (long_lists, "def f(a, b, c, d, e, f, g): ..."),
        (long_lists, "class A:\n def f(self, a, b, c, d, e, /, f, g): ..."),
        (loads_of_pickles, "torch.load(file)"),
        (loads_of_pickles, "torch.load(file, weights_only=False)"),
    ],
)
def test_violations_of_the_rule_are_found(rule, code: str) -> None:
    assert len(list(rule(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "code",
    [
        'raise UserError("the file is broken; mend it")',
        'def f():\n """Write the file anew."""',
        "f()  # the labels, beside the images",
        'raise UserError(f"{path}: told twice")',
    ],
)
def test_unusual_words_are_found(code: str) -> None:
    assert len(list(unusual_words(code))) == 1


def test_no_shipped_text_has_unusual_words() -> None:
    found = [
        f"{path}:{line}: {word}: say {UNUSUAL_WORDS[word.lower()]!r}"
        for path in trees()
        if path.parts[0] != "tests"
        for line, word in unusual_words((ROOT / path).read_text(encoding="utf-8"))
        if (path.as_posix(), word.lower()) not in WORDS_OF_DATA
    ]
    assert found == []


def unusual_words_of_pages() -> Iterator[str]:
    """`path:line: word` of each unusual word in a page of the documentation or a comment of a config."""
    words = re.compile(rf"\b(?:{'|'.join(UNUSUAL_WORDS)})\b", re.IGNORECASE)
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "vlm_detect" / "configs").rglob("*.yaml")]
    for path in pages:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            text = line.partition("#")[2] if path.suffix == ".yaml" else line
            if found := words.search(text):
                yield f"{path.relative_to(ROOT)}:{number}: {found[0]}: say {UNUSUAL_WORDS[found[0].lower()]!r}"


def test_no_page_has_unusual_words() -> None:
    in_the_table = re.compile(r"docs/design\.md:\d+: suspected")
    assert [found for found in unusual_words_of_pages() if not in_the_table.match(found)] == []


def rooms(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir() and any(path.rglob("*.py"))} - {"__pycache__"}


def test_tests_mirror_the_package() -> None:
    package, tests = rooms(ROOT / "vlm_detect"), rooms(ROOT / "tests")
    assert tests - NO_ROOM - package == set()
    assert package - tests == set()
