"""Prompts sampled from a base and modifiers."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_detect.config import CONFIGS
from vlm_detect.errors import UserError
from vlm_detect.generate.prompts import PromptBook


def book(tmp_path: Path, text: str) -> PromptBook:
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    return PromptBook.read(path)


def test_the_same_seed_samples_the_same_prompt(tmp_path: Path) -> None:
    prompts = book(
        tmp_path, 'base: "{what} {where}, {light}"\nmodifiers: {what: [a, b], where: [c, d], light: [e, ""]}'
    )
    assert prompts.sample(3) == prompts.sample(3)
    sampled = {prompts.sample(seed) for seed in range(100)}
    assert sampled == {f"{x} {y}{z}" for x in "ab" for y in "cd" for z in (", e", "")}


def test_the_shipped_book_samples_many_prompts() -> None:
    prompts = PromptBook.read(CONFIGS / "generators" / "prompts.yaml")
    sampled = {prompts.sample(seed) for seed in range(200)}
    assert len(sampled) > 150
    assert not any("{" in prompt or prompt.endswith(",") for prompt in sampled)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base: '{what}'", "{what} in the base has no modifiers"),
        ("modifiers: {a: [b]}", "needs `base`"),
        ("base: a\nextra: 1", "nothing else"),
        ("- a", "needs `base`"),
        ("base: [", "cannot be read as YAML"),
        ("base: 'a {s}'\nmodifiers: {s: dog}", "each of the `modifiers` a list"),
        ("base: 'a {s}'\nmodifiers: {s: []}", "each of the `modifiers` a list"),
        ("base: a\nmodifiers: [b]", "each of the `modifiers` a list"),
        ("base: {a: b}", "`base` has to be a text or a list"),
        ("base: [1]", "the base 1 is not a text"),
        ("base: 'a {s'\nmodifiers: {s: [a]}", "is not a text with {names}"),
        ("base: 'a {s:d}'\nmodifiers: {s: [a]}", "is not a text with {names}"),
        ("base: 'a {s:{w}}'\nmodifiers: {s: [a]}", "is not a text with {names}"),
    ],
)
def test_another_format_is_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        book(tmp_path, text)
