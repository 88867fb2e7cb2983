"""The programs that score, build and compare: their flags, and a call of what does the work.

Nothing heavy is imported before the flags are read, so that `--help` answers at once.
"""

from __future__ import annotations

from vlm_detect.benchmark.options import (
    BenchmarkOptions,
    BuildOptions,
    CompareOptions,
    EvidenceOptions,
    ImportOptions,
    RobustnessOptions,
)
from vlm_detect.config import parse_config


def benchmark(argv: list[str]) -> None:
    """Score a model, or recorded answers, on a VQA benchmark.

        vlm-detect benchmark --model runs/moondream_lora --benchmark data/pairs
        vlm-detect benchmark --model nano --benchmark vqa_multiple_choice_benchmark.json --out runs/nano/eval
        vlm-detect benchmark --model runs/cnn --benchmark data/vqa/benchmark.json
        vlm-detect benchmark --endpoint http://localhost:8000/v1 --model qwen2.5-vl --benchmark benchmark.json
        vlm-detect benchmark --answers answers.json --out runs/answers
        vlm-detect benchmark --model runs/moondream_lora --benchmark data/cifake_reasons --explanations 2000

    The benchmark is a JSON or JSONL file of items, or the folder of a pair or image dataset, whose test split is then
    asked the yes/no questions. Out come results.jsonl (one line an answered prompt), summary.json, report.html and
    run.json. Started again, the same command goes on where it was interrupted, or says that nothing is left to do.
    Several processes share the images and write one result. An endpoint's key is read from the variable that
    --api_key_env names.

    With --explanations, so many images of a dataset are also asked for an explanation, whose sentences are held against
    the images' measurements (explanations.jsonl, and `explanations` in summary.json). The model without its adapter
    answers some of the same, in the folder base, and some images are looked at again with the named places hidden.

    It does not choose a threshold, a prompt or an epoch: those belong to the validation split (`vlm-detect calibrate`).

    Several processes: accelerate launch -m vlm_detect benchmark (in a clone: eval/vqa_benchmark.py).
    """
    (options,) = parse_config([BenchmarkOptions], argv, doc=benchmark.__doc__)
    from vlm_detect.benchmark.scoring import score

    score(options)


def robustness(argv: list[str]) -> None:
    """How a model's verdicts hold when images are compressed, scaled, blurred or cropped on their way.

        vlm-detect robustness --model runs/moondream_lora --benchmark data/pairs
        vlm-detect robustness --model nano --benchmark data/vqa/benchmark.json --conditions tiers --limit 200

    The tiers clean, web, hard and thumb have fixed meanings (`vlm_detect/benchmark/perturb.py`); the curves change one
    thing in steps. Each is applied to both classes, and to each class alone. Only verdicts are asked (yes/no, real or
    fake), by log-probability in both polarities. Out come a folder of answers a condition, robustness.json and
    report.html; started again, the same command goes on with what is missing.

    Several processes: accelerate launch -m vlm_detect robustness (in a clone: eval/robustness.py).
    """
    (options,) = parse_config([RobustnessOptions], argv, doc=robustness.__doc__)
    from vlm_detect.benchmark.robustness import answer_conditions

    answer_conditions(options)


def compare(argv: list[str]) -> None:
    """Compare runs, and score files of any other detector, over the same items.

        vlm-detect compare runs/base/eval runs/moondream_lora/eval --out runs/compared
        vlm-detect compare runs/moondream_lora/eval other_detector.csv --benchmark data/vqa/benchmark.json
        vlm-detect compare runs/explains/eval runs/yes_no/eval --explanations cifake.json

    A score file is a CSV with the columns image (its file name, with as many of its folders as tell it apart) and
    p_fake (0 to 1). Which items those are says --benchmark; without it, the CSV needs a column `label` (real or
    generated) and is compared with other CSVs only. Out come compare.json and report.html: every figure with its
    interval, McNemar's test and the paired bootstrap of each run against the first, and the curves of vlm-detect
    robustness where they lie beside a run's results.
    """
    (options,) = parse_config([CompareOptions], argv, doc=compare.__doc__)
    from vlm_detect.benchmark.compare_runs import compare_runs

    compare_runs(options)


def build_vqa(argv: list[str]) -> None:
    """Build a VQA benchmark from a dataset, or show what anyone's benchmark gives away without its images.

        vlm-detect build-vqa data/pairs --out data/vqa/benchmark.json
        vlm-detect build-vqa data/pairs --out data/vqa/benchmark.json --n_true_false 200 --n_multiple_choice 200
        vlm-detect build-vqa --check data/vqa/benchmark.json --json
        vlm-detect build-vqa --check data/vqa/benchmark.json --model nano      # and what that model gets from no image

    Writes the items as JSON and their images into a folder beside it, under names that say nothing, all in one
    encoding. Built items stand in blocks of equal text, each answer right for one image of the block, so that no reader
    of the text alone does better than chance. `--check` measures that: the longest option, the shortest, the commonest
    letter, a classifier on the words and, with --model, the model shown a blank image or another item's.

    Only one split is used, the test by default: its photos have no descendants in the others.
    """
    (options,) = parse_config([BuildOptions], argv, doc=build_vqa.__doc__)
    from vlm_detect.benchmark.benchmark_file import build_or_check

    build_or_check(options)


def import_vqa(argv: list[str]) -> None:
    """Make a benchmark file of a public VQA set: LOKI, FakeBench or FakeClue, as they are published.

        vlm-detect import-vqa --from loki loki/true_or_false.json --images loki/media --out data/vqa/loki.json
        vlm-detect import-vqa --from fakebench FakeClass.json --images FakeBench_images --out fakebench.json
        vlm-detect import-vqa --from fakeclue FakeClue/data_json/test.json --images FakeClue/test --out fakeclue.json

    Only the file of questions is converted; the images stay where they are. Rows that are not about images are left out
    and counted; bad ones (an image that is missing, a label that its own text denies) are listed and stop the import,
    or with --skip_bad are left out. What comes out is for vlm-detect benchmark and for vlm-detect build-vqa --check.
    """
    (options,) = parse_config([ImportOptions], argv, doc=import_vqa.__doc__)
    from vlm_detect.benchmark.importers import import_file

    import_file(options)


def evidence(argv: list[str]) -> None:
    """Does a model point at what was done, and name it? Its map and its words against planted edits, which are known.

        vlm-detect evidence --model runs/edits_lora --data data/edits [--out runs/edits_lora/evidence]

    For each edited image of the test split: the map of the question "Was a part of this image altered?" (with `--topic
    generation` of "Is this image AI-generated?"), and whether its peak lies within the edited box. Chance is the box's
    share of the image. A model that cannot tell edited from untouched images (AUROC beside it) has nothing to point
    with.

    And its words: the operation and the place, asked for one by one and in an explanation, right where they are those
    of training letter for letter; "Nothing." of the untouched image. `likeliest` is the operation of those in the
    dataset whose name has the highest log-probability: what a model says once it knows of an edit. Chance is the
    commonest operation or place, said always. Intervals are 95 %, by bootstrap over source photos. `stronger_half` has
    the same figures of the edits that are at least as strong as half of those of their operation.
    """
    (options,) = parse_config([EvidenceOptions], argv, doc=evidence.__doc__)
    from vlm_detect.benchmark.pointing import judge_pointing

    judge_pointing(options)
