"""Families are known by what they can do: nothing outside of `models/` asks which one it has; a package can add one."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.models.tiny_chat import save_tiny
from tests.outside import Outside, outside  # noqa: F401
from vlm_detect.infer.engine import Ask, Engine
from vlm_detect.infer.reference import score_plain
from vlm_detect.models.base import FAMILIES, VLM
from vlm_detect.models.registry import load_vlm

ROOT = Path(__file__).parents[2]
OURS = [
    path for folder in ("vlm_detect", "recipes", "eval", "data_gen", "tests") for path in (ROOT / folder).rglob("*.py")
]

LOOKALIKE = """
import json
from pathlib import Path

from transformers import LlavaConfig

from vlm_detect.models.base import family
from vlm_detect.models.generic.llava import LlavaVLM


@family("lookalike")
class LookalikeVLM(LlavaVLM):
    \"\"\"A LLaVA whose config.json bears another name, which transformers does not know.\"\"\"

    @classmethod
    def load(cls, path_or_id, **options):
        values = json.loads((Path(path_or_id) / "config.json").read_text())
        return super().load(path_or_id, config=LlavaConfig.from_dict({**values, "model_type": "llava"}), **options)
"""


def names_of_families() -> set[str]:
    """The classes that would identify a family, its model or its configuration."""
    found = {"MoondreamConfig", "TinyLlavaConfig", "LlavaConfig", "LlavaForConditionalGeneration"}
    found |= {"MoondreamForConditionalGeneration", "TinyLlavaForConditionalGeneration", "ChatVLM", "LLAVA"}
    return found | {family.__name__ for family in FAMILIES.values()}


def test_nothing_outside_of_models_asks_for_a_family() -> None:
    families = names_of_families()
    wrong = []
    for path in OURS:
        if path.is_relative_to(ROOT / "vlm_detect" / "models") or path.is_relative_to(ROOT / "tests" / "models"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
                asked = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
                wrong += [f"{path.relative_to(ROOT)}:{node.lineno}: {name}" for name in sorted(asked & families)]
    assert not wrong


def test_no_architecture_is_known_by_a_part_of_its_name() -> None:
    """Such as `"qwen" in model_type`."""
    for path in OURS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
                compared = ast.unparse(node.comparators[0])
                assert not (isinstance(node.left, ast.Constant) and "model_type" in compared), f"{path}:{node.lineno}"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_says_what_it_can_do(model_type: str) -> None:
    family = FAMILIES[model_type]
    assert issubclass(family, VLM)
    for name in ("has_fixed_prefix", "estimates_memory"):
        assert isinstance(getattr(family, name), bool), name
    assert family.estimates_memory == (family.skeleton_prefixes.__func__ is not VLM.skeleton_prefixes.__func__)  # type: ignore[attr-defined]


def test_a_package_adds_a_family_for_a_type_unknown_to_transformers(outside: Outside, tmp_path: Path) -> None:  # noqa: F811
    folder = save_tiny("llava", tmp_path / "model")
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "lookalike"}))
    outside.install("lookalike", {"lookalike/family.py": LOOKALIKE}, {"family.lookalike": "lookalike.family"})
    vlm = load_vlm(str(folder), device="cpu")
    assert type(vlm).__name__ == "LookalikeVLM"
    image = Image.new("RGB", (16, 16), "red")
    (((score,),),) = Engine(vlm).score([image], [[Ask("Is it AI?", ("Yes.",))]])
    assert score.logprob == pytest.approx(score_plain(vlm, image, "Is it AI?", "Yes.").logprob, abs=1e-4)
