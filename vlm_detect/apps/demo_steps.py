"""The steps of `vlm-detect demo`, and the page that shows them."""

from __future__ import annotations

import json
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vlm_detect.benchmark.demo_report import ExplainedImage, demo_report, witness_columns
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.results import read_results
from vlm_detect.config import write_json
from vlm_detect.data.pairs import open_dataset
from vlm_detect.errors import UserError
from vlm_detect.images.decode import decode_image
from vlm_detect.infer.explanation import CheckedReason, Explanation
from vlm_detect.machine import peak_process_bytes
from vlm_detect.questions.ask import EXPLAIN_QUESTION
from vlm_detect.questions.kind import KINDS
from vlm_detect.records import Result
from vlm_detect.stats.metrics import figure_labels

VERB = [sys.executable, "-m", "vlm_detect"]
NOTES = [
    "The test images are tiles of {groups} photographs that training never saw: an interval over so few photographs "
    "means little, however many tiles they give.",
    "The nano models are a few megabytes that judge images of 32 pixels. They rehearse the pipeline and detect nothing "
    "in the wild.",
]
PAIRS_SHOWN = 12
ANSWERS_SHOWN = 8
PAIRS_EXPLAINED = 3
EXPLAINED: list[object] = ["--explanations", 100, "--base_explanations", 0, "--faithfulness", 0]  # for seconds


def run_demo(out: Path) -> None:
    """Run every step into `out`, then print a table and write out/report.html."""
    started = time.monotonic()
    photos, unreasoned, pairs = out / "photos", out / "pairs", out / "pairs_reasons"
    verdict, merged, run = out / "moondream_verdict", out / "moondream_verdict_merged", out / "moondream_lora"
    evals = {"base": out / "eval" / "base", "finetuned": out / "eval" / "finetuned"}
    cnn = out / "cnn"
    models = {"base": "nano", "finetuned": str(run)}

    step(photos / "metadata.jsonl", [sys.executable, "-m", "vlm_detect.data.demo_photos", photos])
    nano = ["--captioner", "nano", "--generator", "nano", "--twins", "caption"]
    step(unreasoned / "run.json", [*VERB, "make-pairs", "--images", photos, "--out", unreasoned, *nano])
    step(pairs / "run.json", [*VERB, "add-reasons", unreasoned, "--out", pairs])
    # First the verdict, then the words: learned together, the many words drown the one verdict.
    training: list[object] = ["--config", "moondream_nano", "--num_train_epochs", 4]
    training += ["--data", pairs, "--output_dir", verdict]
    step(verdict / "README.md", [*VERB, "train", "moondream", *training])
    if not (merged / "calibration.json").exists():  # which comes last: what an interrupted export left is in its way
        shutil.rmtree(merged, ignore_errors=True)
    step(merged / "calibration.json", [*VERB, "export", verdict, merged, "--to", "merged"])
    training = ["--config", "moondream_nano_reasons", "--model", merged, "--data", pairs, "--output_dir", run]
    step(run / "README.md", [*VERB, "train", "moondream", *training])
    for name, folder in evals.items():
        command: list[object] = [*VERB, "benchmark", "--model", models[name], "--benchmark", pairs, "--out", folder]
        step(folder / "run.json", command + (EXPLAINED if name == "finetuned" else []))

    training = ["--config", "cnn_demo", "--data", pairs, "--test_data", pairs]
    training += ["--pixels_dir", out / "pixels", "--output_dir", cnn]
    step(cnn / "README.md", [*VERB, "train", "cnn", *training])
    evals["cnn"] = cnn / "tests" / f"{pairs.name}-test"

    examples = save_examples(pairs, out)
    example = out / "example.png"
    answered = out / "chat.txt"
    if not answered.exists():
        command = [*VERB, "chat", "--model", run, example, EXPLAIN_QUESTION]
        answered.write_text(call(command, stdout=subprocess.PIPE), encoding="utf-8")
    print(f"\n{example.name}: {EXPLAIN_QUESTION} -> {answered.read_text(encoding='utf-8').strip()}")
    scanned = out / "explained.jsonl"
    step(scanned, [*VERB, "scan", "--model", run, *examples, "--explain", "--out", scanned])

    summaries = {name: json.loads((folder / "summary.json").read_text()) for name, folder in evals.items()}
    write_json(out / "summary.json", summaries)
    report = out / "report.html"
    write_report(report, pairs, run, evals, summaries, explained_images(examples, scanned))
    print_table(summaries)
    peak = peak_process_bytes(of_children=True)
    memory = f", largest process {peak / 1e9:.1f} GB" if peak is not None else ""
    print(f"{time.monotonic() - started:.0f} s{memory}\nreport: {report.resolve().as_uri()}")


def step(product: Path, command: Sequence[object]) -> None:
    """Run a command, unless its final output exists."""
    if product.exists() and product.stat().st_size:  # a scan opens its file before it judges
        print(f"{product if product.suffix == '.jsonl' else product.parent}: done before")
        return
    call(command)


def call(command: Sequence[object], **options: Any) -> str:
    arguments = list(map(str, command))
    print(f"\n$ {shlex.join(arguments).replace(shlex.join(VERB), 'vlm-detect')}", flush=True)
    done = subprocess.run(arguments, text=True, check=False, **options)
    if done.returncode:
        raise UserError(
            f"this step ended with exit status {done.returncode}; fix what it reports and run the demo again"
        )
    return done.stdout or ""


def save_examples(pairs: Path, out: Path) -> dict[Path, str]:
    """Photos of the test split and their twins, as files with what they are: those with most to say, as measured."""
    test = open_dataset(pairs)["test"]
    reasons = enumerate(zip(test["image_reasons"], test["twin_reasons"], strict=True))
    most = sorted(reasons, key=lambda one: -min(map(len, one[1])))[:PAIRS_EXPLAINED]
    names = {}
    for number, row in enumerate(test[i] for i, _ in most):
        stem = f"example_{number + 1}" if number else "example"
        for column, path, name in (
            ("image", out / f"{stem}_photo.png", "a photo"),
            ("twin", out / f"{stem}.png", "its twin"),
        ):
            row[column].save(path)
            names[path] = name
    return names


def explained_images(names: dict[Path, str], scanned: Path) -> list[ExplainedImage]:
    """What a scan with reasons wrote of a few images, with the images."""
    rows = {Path(row["path"]).name: row for row in map(json.loads, scanned.read_text(encoding="utf-8").splitlines())}
    found = []
    for path, name in names.items():
        row = rows[path.name]
        explanation = Explanation(row["explanation"], tuple(map(CheckedReason.from_json, row["reasons"])))
        image = decode_image(path.read_bytes()).image
        found.append(ExplainedImage(image, name, row["label"], row["p_fake"], explanation))
    return found


def write_report(
    out: Path,
    pairs: Path,
    run: Path,
    evals: dict[str, Path],
    summaries: dict[str, dict[str, Any]],
    explained: Sequence[ExplainedImage],
) -> None:
    rng = random.Random(0)
    shown = []
    for split, rows in open_dataset(pairs).items():
        for i in sorted(rng.sample(range(len(rows)), min(PAIRS_SHOWN // 3, len(rows)))):
            shown.append((rows[i]["image"], rows[i]["twin"], rows[i]["caption"], split))
    history = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    demo_report(
        out,
        pairs=shown,
        log_history=history,
        summaries=summaries,
        results={name: closed_results(folder) for name, folder in evals.items()},
        answers=some_answers(pairs, evals["finetuned"], rng),
        explained=explained,
        notes=[note.format(groups=summaries["finetuned"]["groups"]) for note in NOTES],
    )


def closed_results(folder: Path) -> list[Result]:
    """A benchmark's answers without those to open questions, which the scores leave out too."""
    return [one for one in read_results(folder / "results.jsonl") if not KINDS[one.kind].is_open]


def some_answers(pairs: Path, evaluation: Path, rng: random.Random) -> list[tuple[Any, str, str, str, float | None]]:
    """(image, question, answer, truth, p_fake) of a few test images, as the finetuned model gave them."""
    benchmark = load_benchmark(str(pairs), split="test")
    results = closed_results(evaluation)
    p_fake = {result.id: result.p_fake for result in results if result.scoring == "logprob"}
    free = {result.id: result for result in results if result.scoring == "generate"}
    chosen = rng.sample([item for item in benchmark.items if item.id in free], min(ANSWERS_SHOWN, len(free)))
    return [
        (benchmark.image(item.images[0]), given.question, given.answer, item.ground_truth, p_fake[item.id])
        for item in chosen
        for given in [free[item.id]]
    ]


def print_table(summaries: dict[str, dict[str, Any]]) -> None:
    columns = witness_columns(summaries)
    table = Table("", *columns, title="On photographs that training never saw, with 95 % intervals")
    for name, label in figure_labels().items():
        cells = []
        for summary in columns.values():
            value, interval = summary.get(name), (summary.get("ci95") or {}).get(name)
            cell = "-" if value is None else f"{value:.3f}"
            cells.append(f"{cell} [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else cell)
        table.add_row(label, *cells)
    Console().print(table)
