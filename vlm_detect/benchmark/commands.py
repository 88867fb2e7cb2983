"""The programs that score, build and compare: parse the flags, then call the implementation.

Nothing heavy is imported before the flags are read, so that `--help` answers at once.
"""

from __future__ import annotations

from vlm_detect.benchmark.options import (
    BenchmarkOptions,
    BuildOptions,
    CompareOptions,
    EvidenceOptions,
    ImportOptions,
    PaperTableOptions,
    RobustnessOptions,
)
from vlm_detect.config import parse_config
from vlm_detect.errors import UsageError
from vlm_detect.jobs.launch import Launch


def benchmark(argv: list[str]) -> None:
    """Score a model, or recorded answers, on a VQA benchmark.

        vlm-detect benchmark --model runs/moondream_lora --benchmark data/pairs
        vlm-detect benchmark --model nano --benchmark vqa_multiple_choice_benchmark.json --out runs/nano/eval
        vlm-detect benchmark --model runs/cnn --benchmark data/vqa/benchmark.json
        vlm-detect benchmark --endpoint http://localhost:8000/v1 --model qwen2.5-vl --benchmark benchmark.json
        vlm-detect benchmark --answers answers.json --out runs/answers
        vlm-detect benchmark --model runs/moondream_lora --benchmark data/cifake_reasons --explanations 2000
        vlm-detect benchmark --model runs/moondream_lora --benchmark data/pairs --executor slurm --workers 16

    The benchmark is a JSON or JSONL file of items, or the folder of a pair or image dataset, whose test split is then
    asked the yes/no questions. Output: results.jsonl (one line per answered prompt), summary.json, report.html and
    run.json. The same command resumes an interrupted run, or says that nothing is left to do. Several processes share
    the images and write one result. An endpoint's key is read from the environment variable that --api_key_env names.

    With --explanations, so many images of a dataset are also asked for an explanation, whose sentences are checked
    against the images' measurements (explanations.jsonl, and `explanations` in summary.json). The model without its
    adapter answers some of the same, in the folder base, and some images are looked at again with the named places
    hidden.

    A benchmark never selects a threshold, a prompt or an epoch: use the validation split for that (`vlm-detect
    calibrate`).

    Several processes: accelerate launch --quiet -m vlm_detect benchmark (in a clone: eval/vqa_benchmark.py), or
    --workers N. With --executor slurm or ray the workers are those of a cluster. A worker that dies is replaced, and
    its shard is answered again.
    """
    options, launch = parse_config([BenchmarkOptions, Launch], argv, doc=benchmark.__doc__)
    if launch != Launch():
        if options.answers:
            raise UsageError("--answers asks no model: omit --executor, --workers and what goes with them")
        if options.endpoint:
            raise UsageError("--endpoint: give --parallel N in place of --executor and --workers")
    from vlm_detect.benchmark.scoring import score

    score(options, launch)


def robustness(argv: list[str]) -> None:
    """Measure how verdicts hold up when images are compressed, scaled, blurred or cropped.

        vlm-detect robustness --model runs/moondream_lora --benchmark data/pairs
        vlm-detect robustness --model nano --benchmark data/vqa/benchmark.json --conditions tiers --limit 200

    The tiers clean, web, hard and thumb have fixed meanings (`vlm_detect/benchmark/perturb.py`); the curves vary one
    parameter in steps. Each is applied to both classes, and to each class alone. Only verdicts are asked (yes/no, real
    or fake), by log-probability in both polarities. Output: a folder of answers per condition, robustness.json and
    report.html. The same command resumes an interrupted run.

    Several processes: accelerate launch --quiet -m vlm_detect robustness (in a clone: eval/robustness.py).
    """
    (options,) = parse_config([RobustnessOptions], argv, doc=robustness.__doc__)
    from vlm_detect.benchmark.robustness import answer_conditions

    answer_conditions(options)


def paper_table(argv: list[str]) -> None:
    """Make the table of a paper: every model on every set, next to what each set leaks.

        vlm-detect paper-table data/sid data/opensdi --models runs/moondream_lora runs/cnn --out runs/table
        vlm-detect paper-table data/pairs --models runs/moondream_lora --split unseen

    Each set is a folder of a pair or image dataset. A row has balanced accuracy, accuracy on real and on fake
    images, AP, AUROC and the generator that is detected least, with 95 % intervals, for the images as published and
    aligned: all of one size and one JPEG encoding. Next to them are the leaks of the set, by its audit: what tells
    its classes apart without content (format, size, JPEG tables, ...). Output: table.md, table.tex and table.json,
    and the answers, by which the same command resumes.

    Several processes: accelerate launch --quiet -m vlm_detect paper-table (in a clone: eval/paper_table.py).
    """
    (options,) = parse_config([PaperTableOptions], argv, doc=paper_table.__doc__)
    from vlm_detect.benchmark.paper_table import paper_table as make

    make(options)


def compare(argv: list[str]) -> None:
    """Compare runs, and score files of other detectors, on the same items.

        vlm-detect compare runs/base/eval runs/moondream_lora/eval --out runs/compared
        vlm-detect compare runs/moondream_lora/eval other_detector.csv --benchmark data/vqa/benchmark.json
        vlm-detect compare runs/explains/eval runs/yes_no/eval --explanations cifake.json

    A score file is a CSV with the columns image (its file name, with as many parent folders as make it unique) and
    p_fake (0 to 1). --benchmark says which items the images belong to; without it, the CSV needs a column `label` (real
    or generated) and is compared with other CSVs only. Output: compare.json and report.html, with every metric and its
    interval, McNemar's test and the paired bootstrap of each run against the first, and the curves of vlm-detect
    robustness if they are next to a run's results.
    """
    (options,) = parse_config([CompareOptions], argv, doc=compare.__doc__)
    from vlm_detect.benchmark.compare_runs import compare_runs

    compare_runs(options)


def build_vqa(argv: list[str]) -> None:
    """Build a VQA benchmark from a dataset, or measure what a benchmark leaks without its images.

        vlm-detect build-vqa data/pairs --out data/vqa/benchmark.json
        vlm-detect build-vqa data/pairs --out data/vqa/benchmark.json --n_true_false 200 --n_multiple_choice 200
        vlm-detect build-vqa --check data/vqa/benchmark.json --json
        vlm-detect build-vqa --check data/vqa/benchmark.json --model nano      # also the model's blind baselines

    Writes the items as JSON and their images into a folder next to it, under neutral names, all in one encoding. Items
    come in blocks of equal text, each answer right for one image of the block, so that no text-only predictor beats
    chance. `--check` measures the blind baselines: the longest option, the shortest, the most frequent letter, a
    classifier on the words and, with --model, the model shown a blank image or another item's.

    Only one split is used, by default test: nothing in the other splits is derived from its photos.
    """
    (options,) = parse_config([BuildOptions], argv, doc=build_vqa.__doc__)
    from vlm_detect.benchmark.benchmark_file import build_or_check

    build_or_check(options)


def import_vqa(argv: list[str]) -> None:
    """Convert a public VQA set to a benchmark file: LOKI, FakeBench or FakeClue, as published.

        vlm-detect import-vqa --from loki loki/true_or_false.json --images loki/media --out data/vqa/loki.json
        vlm-detect import-vqa --from fakebench FakeClass.json --images FakeBench_images --out fakebench.json
        vlm-detect import-vqa --from fakeclue FakeClue/data_json/test.json --images FakeClue/test --out fakeclue.json

    Only the file of questions is converted; the images stay in place. Rows that are not about images are skipped and
    counted; invalid rows (a missing image, a label that contradicts its text) are listed and stop the import, or are
    skipped with --skip_bad. The output is for vlm-detect benchmark and vlm-detect build-vqa --check.
    """
    (options,) = parse_config([ImportOptions], argv, doc=import_vqa.__doc__)
    from vlm_detect.benchmark.importers import import_file

    import_file(options)


def evidence(argv: list[str]) -> None:
    """Compare a model's evidence maps and explanations with planted edits, whose place and operation are known.

        vlm-detect evidence --model runs/edits_lora --data data/edits [--out runs/edits_lora/evidence]

    Maps: for each edited image of the test split, the evidence map of the question "Was a part of this image altered?"
    (with `--topic generation`: "Is this image AI-generated?"), and whether its peak is within the edited box. Chance is
    the box's share of the image. For a model that cannot distinguish edited from unedited images (see the AUROC), the
    map means nothing.

    Answers: the operation and the place, asked for separately and in an explanation, correct where they match the
    training answers exactly; "Nothing." for the unedited image. `likeliest` is the operation in the dataset whose name
    has the highest log-probability: the answer given that there is an edit. Chance is always answering the most
    frequent operation or place. Intervals are 95 %, by bootstrap over source photos. `stronger_half` has the same
    metrics for edits at or above the median strength of their operation.
    """
    (options,) = parse_config([EvidenceOptions], argv, doc=evidence.__doc__)
    from vlm_detect.benchmark.pointing import judge_pointing

    judge_pointing(options)
