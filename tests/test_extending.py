"""The recipes of docs/extending.md: its code is installed as a package of its own, and each thing is used."""

from __future__ import annotations

import io
import json
import random
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
)

from tests.benchmark.fakes import FakeAsk, FakeEngine
from tests.benchmark.test_build import pairs
from tests.benchmark.test_dataset_items import pair, write_pairs
from tests.data.factories import photo
from tests.models.tiny_chat import _LLAVA_TEMPLATE, SIGLIP, TEXT, byte_tokenizer
from tests.outside import Outside, outside  # noqa: F401
from tests.scripts.here import run_here
from tests.train.toys import stored, toy_pairs
from vlm_detect import plugins
from vlm_detect.benchmark.build import build
from vlm_detect.benchmark.explanations import names, operation_words
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.report import write_report
from vlm_detect.benchmark.score import score
from vlm_detect.benchmark.summary import summarise
from vlm_detect.benchmark.text_baselines import text_baselines
from vlm_detect.config import CONFIGS, versions
from vlm_detect.data.image_sets import open_image_set
from vlm_detect.errors import UserError
from vlm_detect.generate.caption_step import PHOTO_FEATURES
from vlm_detect.generate.choices import EditOperations, Layout, TwinKinds
from vlm_detect.generate.edit_reasons import edit_reasons
from vlm_detect.generate.edits import random_edit
from vlm_detect.generate.options import RenderConfig
from vlm_detect.generate.render_step import RenderShard, check_generator, complete
from vlm_detect.images.edits import EDITS
from vlm_detect.infer.engine import Ask, Engine
from vlm_detect.infer.reference import score_plain
from vlm_detect.jobs.shards import Plan, read_rejects, read_rows, write_shard
from vlm_detect.models.cnn.configuration import CnnConfig
from vlm_detect.models.cnn.model import CnnForDetection, new_model
from vlm_detect.models.registry import load_vlm
from vlm_detect.questions.sample import make_question
from vlm_detect.records import Question, Subject
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Example, QuestionOptions, Units
from vlm_detect.train.loss import answer_loss

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = {path: code for _, path, code in re.findall(r"```(python|yaml|toml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)}
POINTS = tomllib.loads(FILES["pyproject.toml"])["project"]["entry-points"][plugins.GROUP]


@pytest.fixture(autouse=True)
def my_package(outside: Outside) -> Outside:  # noqa: F811
    outside.install("my_package", {path: code for path, code in FILES.items() if path != "pyproject.toml"}, POINTS)
    return outside


def test_the_page_has_every_kind() -> None:
    table = re.findall(r"^\| `(\w+)` \| `(vlm_detect[\w.]+)`", PAGE, re.MULTILINE)
    assert [kind for kind, _ in table] != []
    assert {kind for kind, _ in table} == set(plugins.KINDS)
    assert {point.partition(".")[0] for point in POINTS} == set(plugins.KINDS) - {"measure"}  # on a page of its own
    assert plugins.mistaken() == []
    assert versions()["my_package"] == "1.0"  # in every run.json


def test_the_edits_of_this_package_are_documented() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    table = page.partition("## Edits")[2].partition("## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == EDITS.own


def test_an_edit() -> None:
    assert EditOperations("posterise,blur") == "blur,posterise"
    assert "posterise" not in EditOperations.all_own()
    for seed in range(3):
        edited = random_edit(photo(seed, (96, 64)), seed, operations=["posterise"])
        assert edited.operation == "posterise"
    box = list(edited.box)
    row = {"operation": "posterise", "box": box}
    (operation, _) = edit_reasons(row, (96, 64), seed="a")
    assert names(operation.text, "posterise", operation_words())
    subject = Subject("edited", edit=row, size=(96, 64))
    asked = [make_question(subject, kind, "fake", random.Random(0), topic="edit") for kind in ("operation", "explain")]
    assert asked[0] is not None
    assert asked[0].answer == "Posterise."
    blurred = Subject("edited", edit={**row, "operation": "blur"}, size=(96, 64))
    choices = [make_question(blurred, "multiple_choice", "fake", random.Random(i), topic="edit") for i in range(60)]
    distractors = [choice.question for choice in choices if choice]
    assert any("Posterise" in text for text in distractors)  # else the name would give the answer away


def test_a_generator_is_a_class(tmp_path: Path) -> None:
    config = complete(
        RenderConfig(generator="stripes", twins=TwinKinds("caption"), render_batch=2), CONFIGS / "generators"
    )
    check_generator(config)
    with pytest.raises(UserError, match="--twins vae: stripes has no autoencoder"):
        check_generator(RenderConfig(generator="stripes"))
    rows = []
    for i in range(3):
        buffer = io.BytesIO()
        photo(i, (80, 80)).save(buffer, "PNG")
        source = {"path_or_id": f"{i}.png", "width": 80, "height": 80}
        about = {"id": f"{i}", "group": f"{i}", "caption": f"thing {i}", "image": {"bytes": buffer.getvalue()}}
        rows.append(about | {"source": source})
    write_shard(tmp_path / "captions", 0, rows, PHOTO_FEATURES, [])
    RenderShard(tmp_path / "captions", config, Plan("render", 3, 3, "", {}), tmp_path / "renders")(0)
    assert list(read_rejects(tmp_path / "renders", 0)) == []
    rendered = list(read_rows(tmp_path / "renders", 0))
    assert [(row["generator"], row["generator_revision"], len(row["twins"])) for row in rendered] == [
        ("stripes", "1", 1)
    ] * 3
    with Image.open(io.BytesIO(rendered[0]["twins"][0]["image"]["bytes"])) as twin:
        assert twin.size == (64, 64)


def test_a_generator_is_a_yaml() -> None:
    completed = complete(RenderConfig(generator="my_sd", steps=10), CONFIGS / "generators")
    assert completed.generator == "stabilityai/stable-diffusion-3.5-medium"
    assert (completed.steps, completed.guidance, completed.render_size) == (10, 5.0, 768)


def test_a_cnn(tmp_path: Path) -> None:
    model = new_model(CnnConfig(arch="two_layers", image_size=32, heads={"verdict": ["real", "generated"]})).eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    model.save_pretrained(tmp_path)
    again = CnnForDetection.from_pretrained(tmp_path, trust_remote_code=False).eval()
    torch.testing.assert_close(again(pixels)["verdict"], model(pixels)["verdict"])
    with pytest.raises(UserError, match="two_layers takes images of at least 8 pixels"):
        new_model(CnnConfig(arch="two_layers", image_size=7))


def test_an_importer(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("photo_1", "ai_glide_1", "ai_sd3_2", "notes_1"):
        photo(1, (16, 16)).save(folder / f"{name}.png")
    images = open_image_set(Layout("by_prefix"), str(folder))
    found = {(Path(entry.where).stem, entry.label, entry.generator) for entry in images.entries}
    assert found == {
        ("photo_1", "real", ""),
        ("ai_glide_1", "generated", "glide"),
        ("ai_sd3_2", "generated", "sd3"),
    }
    assert sum(images.skipped.values()) == 1


def test_an_importer_of_questions(tmp_path: Path) -> None:
    photo(1, (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "q.json").write_text(json.dumps([{"q": "Is it fake?", "a": "Yes", "file": "elsewhere/a.png"}]))
    out = tmp_path / "items.json"
    done = run_here("eval/import_vqa.py", "--from", "pairs", tmp_path / "q.json", "--out", out)
    assert done.returncode == 0, done.stderr
    (item,) = load_benchmark(out).items
    assert (item.kind, item.question) == ("true_false", "Is it fake?")


def test_a_kind_of_question_in_training() -> None:
    options = QuestionOptions(question_kinds=["origin", "yes_no"], questions_per_image=3)
    units = Units(toy_pairs(4), options)
    kinds = [{question.kind for question in example.questions} for example in units[0, 0]]
    assert kinds[1] >= {"yes_no"}
    made = make_question(Subject("generated", kind="vae"), "origin", "fake", random.Random(0))
    assert made == Question("origin", "How was this image generated?", "After a photo.")
    assert make_question(Subject("real"), "origin", "fake", random.Random(0)) is None
    with pytest.raises(UserError, match="--question_kinds orgin: no such question; did you mean origin"):
        Units(toy_pairs(2), QuestionOptions(question_kinds=["orgin"]))
    with pytest.raises(UserError, match="--question_kinds which_of_two: only for benchmarks"):
        Units(toy_pairs(2), QuestionOptions(question_kinds=["which_of_two"]))


def test_a_kind_of_question_in_a_benchmark(tmp_path: Path) -> None:
    built = [item for item in build(pairs(20, kinds=("caption", "vae")), {"origin": 12}) if item.kind == "origin"]
    assert len(built) == 12
    assert text_baselines(built)["bag_of_words"] <= 0.5
    rows = []
    for number, item in enumerate(built):
        colour = "red" if item.ground_truth == "A" else "blue"
        Image.new("RGB", (8 + number, 8), colour).save(tmp_path / f"{number}.png")
        row = {"id": str(number), "kind": "origin", "image": f"{number}.png", "question": item.question}
        rows.append(row | {"options": item.options, "ground_truth": item.ground_truth, "metadata": item.metadata})
    (tmp_path / "b.json").write_text(json.dumps(rows))
    benchmark = load_benchmark(tmp_path / "b.json")

    def knows(image: Image.Image, question: str, candidates: Any) -> list[float]:
        """A text alone is red; its option stands where the question has it."""
        red = image.getpixel((0, 0)) == (255, 0, 0)
        first = re.search(r"^A: (.*)$", question, re.MULTILINE)
        assert first
        return [0.0, -5.0] if (first[1] == "From a text alone.") == red else [-5.0, 0.0]

    def says(image: Image.Image, question: str) -> str:
        return f"**Answer:** {'A' if image.getpixel((0, 0)) == (255, 0, 0) else 'not B'}"

    results = [one for batch in score(benchmark, FakeEngine(knows, says), ask=FakeAsk) for one in batch]
    summary = summarise(results, baselines=text_baselines(benchmark.items), resamples=20)
    assert summary["by_kind"]["origin"]["accuracy"] == 1.0
    assert summary["rotation_consistency"] == 1.0
    assert summary["generate"]["accuracy"] == summary["generate"]["unparsed_rate"] == 0.5


def test_the_program_builds_that_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [pair(i, one, other) for i, (one, other) in enumerate([("red", "green"), ("blue", "pink")])]
    rows[1]["kind"] = "vae"
    dataset = write_pairs(tmp_path / "pairs", rows)
    none = ("--n_true_false", 0, "--n_multiple_choice", 0, "--n_attribution", 0, "--n_which_of_two", 0, "--n_open", 0)
    done = run_here("eval/build_vqa.py", dataset, "--out", tmp_path / "b.json", *none, "--n_items", "origin=2")
    assert done.returncode == 0, done.stderr
    assert [item.kind for item in load_benchmark(tmp_path / "b.json").items] == ["origin", "origin"]
    for given, said in (("orign=2", "did you mean origin"), ("origin=x", "give KIND=N"), ("yes_no=3", "give KIND=N")):
        wrong = run_here("eval/build_vqa.py", dataset, "--out", tmp_path / "c.json", "--n_items", given)
        assert wrong.returncode in (1, 2)
        assert said in wrong.stderr


def test_a_metric_and_a_section(tmp_path: Path, my_package: Outside, capsys: pytest.CaptureFixture[str]) -> None:
    for number, colour in enumerate(("red", "blue", "red", "blue")):
        Image.new("RGB", (8 + number, 8), colour).save(tmp_path / f"{number}.png")
    rows = [
        {"id": str(i), "image": f"{i}.png", "question": "Is this image AI-generated?", "ground_truth": truth}
        for i, truth in enumerate(["Yes.", "No.", "Yes.", "No."])
    ]
    (tmp_path / "b.json").write_text(json.dumps(rows))
    benchmark = load_benchmark(tmp_path / "b.json")
    engine = FakeEngine(
        lambda image, question, candidates: [-1.0, -2.0], lambda image, question: "Yes & <b>no</b> doubt"
    )
    results = [one for batch in score(benchmark, engine, ask=FakeAsk) for one in batch]
    summary = summarise(results, resamples=20) | {"model": "m", "skipped": 0}
    assert summary["youden"] == 0.0
    assert "youden" in summary["ci95"]
    outside_fails = (
        "from vlm_detect.benchmark.report import section\n\n@section('broken')\ndef broken(report):\n    1 / 0\n"
    )
    my_package.install("broken", {"broken.py": outside_fails}, {"section.broken": "broken"})
    write_report(tmp_path / "r.html", summary, results, benchmark)
    html = (tmp_path / "r.html").read_text()
    assert "Youden&#39;s J" in html
    assert "<h2>The longest answers</h2>" in html
    assert "<p>Yes &amp; &lt;b&gt;no&lt;/b&gt; doubt</p>" in html
    assert "section &#39;broken&#39; of the report failed: ZeroDivisionError" in html
    assert "section 'broken'" in capsys.readouterr().err


def test_a_model_family(tmp_path: Path) -> None:
    save_llava_next(tmp_path)
    vlm = load_vlm(str(tmp_path), device="cpu")
    assert type(vlm).__name__ == "LlavaNextVLM"
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        for width, height in ((16, 16), (40, 20))
    ]
    asks = [[Ask("Is it AI?", ("Yes.", "No.")), Ask("Real?", ("Yes.",))], [Ask("Is it AI?", ("Yes.", "No."))]]
    for image, some, scored in zip(images, asks, Engine(vlm).score(images, asks), strict=True):
        for ask, scores in zip(some, scored, strict=True):
            for candidate, found in zip(ask.candidates, scores, strict=True):
                plain = score_plain(vlm, image, ask.question, candidate)
                assert found.logprob == pytest.approx(plain.logprob, abs=1e-4)
    questions = [Question("yes_no", "Is it AI?", "Yes."), Question("yes_no", "Is it real?", "No.")]
    units = [[Example(stored(image), questions, "real") for image in images]]
    with torch.no_grad():
        packed, plain_loss = (float(answer_loss(vlm, vlm.model, Collator(vlm, pack=p)(units))) for p in (True, False))
    assert packed == pytest.approx(plain_loss, abs=1e-5)


def save_llava_next(folder: Path) -> None:
    tokenizer = byte_tokenizer("<image>")
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=[[16, 32], [32, 16]]
    )
    processor = LlavaNextProcessor(
        image_processor,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        chat_template=_LLAVA_TEMPLATE,
        num_additional_image_tokens=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaNextForConditionalGeneration(
            LlavaNextConfig(
                vision_config=CLIPVisionConfig(**SIGLIP),
                text_config=LlamaConfig(vocab_size=len(tokenizer), **TEXT),
                image_token_index=processor.image_token_id,
                image_grid_pinpoints=[[16, 32], [32, 16]],
                image_seq_length=16,
            )
        )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
