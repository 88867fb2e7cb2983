"""The whole job on bundled photographs with the nano models: what `make demo` runs, and a template for the real one.

    python recipes/demo.py [--out runs/demo]

Every step is the program that a GPU user runs, with small configs; the commands are printed, so that they can be run by
hand. A step whose result stands is skipped, so a second run takes seconds. Nothing here detects anything in the wild.
"""

from __future__ import annotations

import json
import random
import resource
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vlm_detect.benchmark.demo_report import demo_report
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.results import read_results
from vlm_detect.config import REPOSITORY, parse_config, write_json
from vlm_detect.data.pairs import open_dataset
from vlm_detect.errors import UserError, run_main
from vlm_detect.questions.ask import FAKE_QUESTION
from vlm_detect.stats.metrics import figure_labels

BIN = Path(sys.executable).parent
LAUNCH = [
    str(BIN / "accelerate"), "launch", "--num_processes", "1", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no",
]  # fmt: skip
NOTES = [
    "The test images are tiles of {groups} photographs that training never saw: an interval over so few photographs "
    "means little, however many tiles they give.",
    "The nano models are a few megabytes that judge images of 32 pixels. They rehearse the pipeline and detect nothing "
    "in the wild.",
]
PAIRS_SHOWN = 12
ANSWERS_SHOWN = 8


@dataclass(frozen=True)
class Config:
    out: str = field(default="runs/demo", metadata={"help": "Folder for everything that the demo makes."})


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    started = time.monotonic()
    out = Path(config.out)
    photos, pairs, run = out / "photos", out / "pairs", out / "moondream_lora"
    evals = {"base": out / "eval" / "base", "finetuned": out / "eval" / "finetuned"}
    cnn = out / "cnn"
    models = {"base": "nano", "finetuned": str(run)}

    step(photos / "metadata.jsonl", [sys.executable, "-m", "vlm_detect.data.demo_photos", str(photos)])
    step(
        pairs / "run.json",
        [sys.executable, program("data_gen/make_pairs.py"), "--images", str(photos), "--out", str(pairs),
         "--captioner", "nano", "--generator", "nano", "--twins", "caption"],
    )  # fmt: skip
    step(
        run / "README.md",
        [*LAUNCH, program("recipes/moondream_lora.py"), "--config", "moondream_nano",
         "--data", str(pairs), "--output_dir", str(run)],
    )  # fmt: skip
    for name, folder in evals.items():
        step(
            folder / "run.json",
            [*LAUNCH, program("eval/vqa_benchmark.py"), "--model", models[name], "--benchmark", str(pairs),
             "--out", str(folder)],
        )  # fmt: skip

    step(
        cnn / "README.md",
        [*LAUNCH, program("recipes/cnn.py"), "--config", "cnn_demo", "--data", str(pairs),
         "--test_data", str(pairs), "--pixels_dir", str(out / "pixels"), "--output_dir", str(cnn)],
    )  # fmt: skip
    evals["cnn"] = cnn / "tests" / f"{pairs.name}-test"

    example = out / "example.png"
    test = open_dataset(pairs)["test"]
    test[0]["twin"].save(example)
    answered = out / "chat.txt"
    if not answered.exists():
        command = [str(BIN / "vlm-detect"), "chat", "--model", str(run), str(example), FAKE_QUESTION]
        answered.write_text(call(command, stdout=subprocess.PIPE), encoding="utf-8")
    print(f"\n{example.name}: {FAKE_QUESTION} -> {answered.read_text(encoding='utf-8').strip()}")

    summaries = {name: json.loads((folder / "summary.json").read_text()) for name, folder in evals.items()}
    write_json(out / "summary.json", summaries)
    report = out / "report.html"
    write_report(report, pairs, run, evals, summaries)
    print_table(summaries)
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    print(f"{time.monotonic() - started:.0f} s, largest process {peak_gb:.1f} GB\nreport: {report.resolve().as_uri()}")


def program(path: str) -> str:
    return str(REPOSITORY / path)


def step(product: Path, command: list[str]) -> None:
    """Run a command, unless what it leaves at its very end is there."""
    if product.exists():
        print(f"{product.parent}: done before")
        return
    call(command)


def call(command: list[str], **options: Any) -> str:
    print(f"\n$ {shlex.join(command).replace(str(REPOSITORY) + '/', '')}", flush=True)
    done = subprocess.run(command, text=True, check=False, **options)
    if done.returncode:
        raise UserError(f"this step ended with exit status {done.returncode}; mend what it says and run the demo again")
    return done.stdout or ""


def write_report(
    out: Path, pairs: Path, run: Path, evals: dict[str, Path], summaries: dict[str, dict[str, Any]]
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
        results={name: read_results(folder / "results.jsonl") for name, folder in evals.items()},
        answers=some_answers(pairs, evals["finetuned"], rng),
        notes=[note.format(groups=summaries["finetuned"]["groups"]) for note in NOTES],
    )


def some_answers(pairs: Path, evaluation: Path, rng: random.Random) -> list[tuple[Any, str, str, str, float | None]]:
    """(image, question, answer, truth, p_fake) of a few test images, as the finetuned model gave them."""
    benchmark = load_benchmark(str(pairs), split="test")
    results = read_results(evaluation / "results.jsonl")
    p_fake = {result.id: result.p_fake for result in results if result.scoring == "logprob"}
    free = {result.id: result for result in results if result.scoring == "generate"}
    chosen = rng.sample([item for item in benchmark.items if item.id in free], min(ANSWERS_SHOWN, len(free)))
    return [
        (benchmark.image(item.images[0]), given.question, given.answer, item.ground_truth, p_fake[item.id])
        for item in chosen
        for given in [free[item.id]]
    ]


def print_table(summaries: dict[str, dict[str, Any]]) -> None:
    table = Table("", *summaries, title="On photographs that training never saw, with 95 % intervals")
    for name, label in figure_labels().items():
        cells = []
        for summary in summaries.values():
            value, interval = summary.get(name), (summary.get("ci95") or {}).get(name)
            cell = "-" if value is None else f"{value:.3f}"
            cells.append(f"{cell} [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else cell)
        table.add_row(label, *cells)
    Console().print(table)


if __name__ == "__main__":
    run_main(main)
