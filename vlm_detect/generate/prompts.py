"""Sample prompts from a YAML with base texts and modifiers, for images without a photo.

    base: "a photo of {subject} {place}, {light}"
    modifiers:
      subject: ["a dog", "an old man"]
      place: ["in a park", "on a beach"]
      light: ["at noon", "in the evening", ""]

    book = PromptBook.read(Path("prompts.yaml"))
    book.sample(seed=7)          # the same seed, the same prompt

`base` may be a list to sample from. Modifiers that are not in the base are unused, and an unknown name is an error.
"""

from __future__ import annotations

import hashlib
import random
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from vlm_detect.errors import UserError


@dataclass(frozen=True)
class PromptBook:
    """Base texts with {names}, and the alternatives for each name."""

    bases: Sequence[str]
    modifiers: Mapping[str, Sequence[str]]
    sha256: str = ""

    @classmethod
    def read(cls, path: Path) -> PromptBook:
        """Raises `UserError` for a missing or malformed file."""
        try:
            content = path.read_bytes()
            values = yaml.safe_load(content)
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
        if not isinstance(values, dict) or set(values) - {"base", "modifiers"} or not values.get("base"):
            raise UserError(f"{path}: needs `base` (a text or a list) and `modifiers` (lists of texts), nothing else")
        bases = [values["base"]] if isinstance(values["base"], str) else values["base"]
        modifiers = values.get("modifiers") or {}
        lists = [bases, *(modifiers.values() if isinstance(modifiers, dict) else [None])]
        if not all(isinstance(texts, list) and texts for texts in lists):
            raise UserError(
                f"{path}: `base` has to be a text or a list of texts, each of the `modifiers` a list of texts"
            )
        modifiers = {str(name): [str(text or "") for text in texts] for name, texts in modifiers.items()}
        for base in bases:
            try:
                names = [name for _, name, _, _ in string.Formatter().parse(base) if name is not None]
                if missing := [name for name in names if name not in modifiers]:
                    known = ", ".join(modifiers) or "none"
                    raise UserError(f"{path}: {{{missing[0]}}} in the base has no modifiers (known: {known})")
                base.format(**{name: texts[0] for name, texts in modifiers.items()})
            except (ValueError, TypeError, LookupError) as error:
                raise UserError(f"{path}: the base {base!r} is not a text with {{names}} ({error})") from error
        return cls(bases, modifiers, hashlib.sha256(content).hexdigest())

    def sample(self, seed: int) -> str:
        rng = random.Random(seed)
        base = rng.choice(self.bases)
        # in the file's order, used or not, so that the base does not affect other samples
        chosen = {name: rng.choice(texts) for name, texts in self.modifiers.items()}
        text = re.sub(r"\s+", " ", base.format(**chosen))
        return re.sub(r"(?:\s*,)+", ",", text).strip(" ,")
