"""Edits by instruction: photos that an editing model changed, in a row of their own wherever edits are counted."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from tests.data.factories import photo
from tests.generate.test_edits import textured
from tests.generate.test_pipelines import index_of, renderer_of
from tests.generate.tiny_pipelines import small_references
from tests.generate.try_pipeline import save
from tests.scripts.here import run_here
from vlm_detect.benchmark.dataset_images import DatasetImages
from vlm_detect.benchmark.dataset_items import dataset_benchmark, load_split
from vlm_detect.benchmark.text_baselines import baselines_by_kind
from vlm_detect.config import CONFIGS
from vlm_detect.errors import UserError
from vlm_detect.generate.caption_step import plan_captions
from vlm_detect.generate.choices import TwinKinds
from vlm_detect.generate.options import CaptionConfig, RenderConfig, SourceConfig
from vlm_detect.generate.prompts import PromptBook
from vlm_detect.generate.receipts import render_row
from vlm_detect.generate.render_step import plan_renders
from vlm_detect.generate.renderer import Renderer
from vlm_detect.questions.kinds.explain import origin
from vlm_detect.train.examples import Units
from vlm_detect.train.options import QuestionOptions

EDITORS = ("FluxKontextPipeline", "Flux2Pipeline", "Flux2KleinPipeline", "QwenImageEditPipeline")
INSTRUCTIONS = ("Make it evening", "Add a small dog")
COUNT = 8


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos with VAE twins, edits and edits by instruction."""
    folder = tmp_path_factory.mktemp("instruct")
    save("FluxKontextPipeline", folder / "kontext")
    (folder / "photos").mkdir()
    lines = ["file_name,caption"]
    for i in range(COUNT):
        textured(i, (64, 48)).save(folder / "photos" / f"{i}.png")
        lines.append(f"{i}.png,a thing of kind {i}")
    (folder / "photos" / "metadata.csv").write_text("\n".join(lines))
    (folder / "instructions.yaml").write_text(yaml.safe_dump({"base": list(INSTRUCTIONS)}))
    done = run_here(
        "data_gen/make_pairs.py", "--images", folder / "photos", "--generator", folder / "kontext", "--captioner",
        "column", "--twins", "vae,edit,instruct", "--instructions", folder / "instructions.yaml", "--steps", 2,
        "--max_sequence_length", 16, "--render_size", 32, "--aspect", "square", "--edit_operations", "blur",
        "--edits_on", "photos", "--validation", 0, "--test", 0, "--encode", "png", "--out", folder / "pairs",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "pairs"


def rows(pairs: Path, kind: str = "instruct") -> list[dict[str, Any]]:
    table = [row for path in sorted(pairs.glob("data/*.parquet")) for row in pq.read_table(path).to_pylist()]
    return [row for row in table if row["kind"] == kind]


@pytest.mark.parametrize("name", EDITORS)
def test_editing_models_change_an_image_by_an_instruction(name: str) -> None:
    renderer, before = renderer_of(name), photo(0).resize((64, 64))
    texts = renderer.encode_prompts(["a red car", "two cats on a sofa"])
    with small_references():
        one, again, other_seed, other_text = (
            np.asarray(renderer.instruct(before, seed, text))
            for seed, text in ((1, texts[0]), (1, texts[0]), (2, texts[0]), (1, texts[1]))
        )
        other_image = np.asarray(renderer.instruct(photo(1).resize((64, 64)), 1, texts[0]))
    assert one.shape == (64, 64, 3)
    assert np.array_equal(one, again)
    assert not any(np.array_equal(one, other) for other in (other_seed, other_text, other_image))


def test_only_models_that_take_an_image_are_asked_to_edit(tmp_path: Path) -> None:
    Renderer.check_kinds(index_of(tmp_path / "kontext", "FluxKontextPipeline"), ["caption", "instruct"])
    with pytest.raises(UserError, match="--twins instruct: FluxPipeline takes no image to edit; give an editing model"):
        Renderer.check_kinds(index_of(tmp_path / "flux", "FluxPipeline"), ["instruct"])


def test_a_row_has_its_instruction_and_is_rendered_again_from_it(pairs: Path, tmp_path: Path) -> None:
    found = rows(pairs)
    assert len(found) == COUNT
    assert {row["prompt"] for row in found} == set(INSTRUCTIONS)
    assert all(row["edit"] is None and row["receipt"]["steps"] == 2 for row in found)
    assert {row["image_label"] for row in found} == {"real"}
    for row in (found[0], found[-1]):
        assert "the same bytes as in" in render_row(pairs, row["pair_id"], tmp_path / "twin.png")


def test_the_dataset_of_other_instructions_is_another(pairs: Path, tmp_path: Path) -> None:
    captions = plan_captions(SourceConfig(str(pairs.parent / "photos")), CaptionConfig(captioner="column"))
    config = RenderConfig(generator="any", twins=TwinKinds("instruct"))
    (tmp_path / "mine.yaml").write_text("base: Make it night")
    one, other = (
        plan_renders(captions, replace(config, instructions=path)) for path in ("", str(tmp_path / "mine.yaml"))
    )
    assert one.settings["instructions_sha256"] != other.settings["instructions_sha256"]
    assert "instructions_sha256" not in plan_renders(captions, replace(config, twins=TwinKinds("vae"))).settings


def test_the_built_in_instructions_can_be_sampled() -> None:
    book = PromptBook.read(CONFIGS / "generators" / "instructions.yaml")
    assert len({book.sample(seed) for seed in range(60)}) > 20


def test_they_are_asked_about_as_edits_in_a_row_of_their_own(pairs: Path) -> None:
    items = dataset_benchmark(pairs, split="train").items
    instructed = [item for item in items if item.metadata.get("instruction")]
    assert len(instructed) == 2 * COUNT  # the photo and its twin
    assert {item.metadata["asked"] for item in instructed} == {"edited"}
    assert {item.metadata["label"] for item in instructed} == {"real", "edited"}
    assert {item.metadata["instruction"] for item in instructed} == set(INSTRUCTIONS)
    assert set(baselines_by_kind(items)) == {"true_false", "edit_true_false", "instruct_true_false"}


def test_an_explanation_names_the_instruction(pairs: Path) -> None:
    images = DatasetImages(pairs, load_split(pairs, "train"))
    subjects = [images.subject(f"{index}:twin") for index in range(len(images.rows))]
    found = {origin(subject, "edit") for subject in subjects if subject.kind == "instruct"}
    assert found == {f"Altered. By the instruction: {instruction}." for instruction in INSTRUCTIONS}


def test_they_train_as_edits(pairs: Path) -> None:
    units = Units(load_split(pairs, "train"), QuestionOptions())
    labels = Counter(example.label for index in range(len(units)) for example in units[0, index])
    assert labels == {"real": 3 * COUNT, "generated": COUNT, "edited": 2 * COUNT}


def test_they_are_audited_in_a_row_of_their_own(pairs: Path) -> None:
    probes = {probe["name"].partition(": ")[0] for probe in json.loads((pairs / "audit.json").read_text())["probes"]}
    assert {"edited", "instructed"} < probes
