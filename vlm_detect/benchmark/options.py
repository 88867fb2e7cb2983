"""The flags of the programs that score, build and compare, without heavy imports."""

from __future__ import annotations

from argparse import ArgumentTypeError  # the one exception whose message argparse shows
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_detect.config import check_at_least, check_known, check_url
from vlm_detect.errors import UserError
from vlm_detect.plugins import Registry
from vlm_detect.records import Topic

# From one row and its number to items (as in a benchmark file, images named as in the set).
Reader = Callable[[Mapping[str, Any], str], Iterator[dict[str, Any]]]
VQA_IMPORTERS: Registry[Reader] = Registry("vqa_importer", ["vlm_detect.benchmark.importers"])


@dataclass(frozen=True)
class BenchmarkOptions:
    """The model and the benchmark."""

    model: str = field(default="auto", metadata={"help": "A run directory, a Hub id, a local folder, nano or auto."})
    adapter: str | None = field(default=None, metadata={"help": "A run directory whose LoRA is put on --model."})
    expert: str | None = field(
        default=None, metadata={"help": "The run of a CNN, in place of the one that the run's fusion names."}
    )
    endpoint: str | None = field(
        default=None, metadata={"help": "URL of an OpenAI-compatible endpoint (.../v1) that serves --model."}
    )
    api_key_env: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable that holds the endpoint's key."}
    )
    parallel: int = field(default=8, metadata={"help": "Concurrent requests to the endpoint."})
    benchmark: str | None = field(
        default=None, metadata={"help": "A JSON or JSONL file of items, or a dataset folder."}
    )
    answers: str | None = field(default=None, metadata={"help": "Score these recorded answers; no model is loaded."})
    out: str | None = field(default=None, metadata={"help": "Folder for the results; default <run>/eval."})
    split: str = field(default="test", metadata={"help": "Split to use of a dataset folder."})
    skip_bad: bool = field(default=False, metadata={"help": "Skip and count invalid items."})
    limit: int | None = field(default=None, metadata={"help": "Use only the first N items."})
    generate: bool = field(default=True, metadata={"help": "Also score free answers, with a strict parser."})
    max_new_tokens: int = field(default=16, metadata={"help": "Maximum length of a free answer, in tokens."})
    explanation_tokens: int = field(
        default=96, metadata={"help": "Maximum length of an answer to an open question, in tokens."}
    )
    explanations: int = field(
        default=0, metadata={"help": "Also ask about so many images of a dataset for an explanation, and check it."}
    )
    base_explanations: int = field(
        default=200, metadata={"help": "As many of those are also put to the model without its adapter."}
    )
    faithfulness: int = field(
        default=200, metadata={"help": "Look at so many explained images again with the named places hidden."}
    )
    judge: str | None = field(
        default=None, metadata={"help": "A model that judges what no measurement checks, by its name there or here."}
    )
    judge_endpoint: str | None = field(
        default=None, metadata={"help": "URL of an OpenAI-compatible endpoint (.../v1) that has --judge."}
    )
    seed: int = field(default=0, metadata={"help": "Chooses the explained images, and those of the comparison."})
    batch_size: int = field(default=8, metadata={"help": "Images per batch."})
    by: list[str] = field(
        default_factory=list, metadata={"help": "Additional metadata columns to slice the scores by."}
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "parallel", "limit", "max_new_tokens", "explanation_tokens", "batch_size")
        check_at_least(self, 0, "explanations", "base_explanations", "faithfulness")
        if self.explanations and self.answers:
            raise UserError("--explanations asks a model: give --benchmark, a dataset folder, in place of --answers")
        if bool(self.benchmark) == bool(self.answers):
            raise UserError("give either --benchmark (with --model) or --answers")
        check_url(self, "endpoint", "judge_endpoint")
        if self.judge_endpoint and not self.judge:
            raise UserError("--judge_endpoint needs --judge (the model's name at the endpoint)")
        if self.judge and not self.explanations:
            raise UserError("--judge judges explanations: give --explanations N as well")
        if self.endpoint and (self.model == "auto" or self.adapter or self.expert):
            raise UserError("--endpoint needs --model (the model's name at the endpoint), and no --adapter or --expert")


@dataclass(frozen=True)
class RobustnessOptions:
    """The model and the conditions."""

    benchmark: str = field(metadata={"help": "A JSON or JSONL file of items, or a dataset folder."})
    model: str = field(default="auto", metadata={"help": "A run directory, a Hub id, a local folder, nano or auto."})
    adapter: str | None = field(default=None, metadata={"help": "A run directory whose LoRA is put on --model."})
    expert: str | None = field(
        default=None, metadata={"help": "The run of a CNN, in place of the one that the run's fusion names."}
    )
    out: str | None = field(default=None, metadata={"help": "Folder for the results; default <run>/eval/robustness."})
    split: str = field(default="test", metadata={"help": "Which split of a dataset folder is asked about."})
    skip_bad: bool = field(default=False, metadata={"help": "Leave bad items out and count them."})
    limit: int | None = field(default=None, metadata={"help": "Only the first so many verdict items."})
    conditions: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={
            "help": "Which conditions: all, tiers, curves, or names such as web typographic hard_photos jpeg_50."
        },
    )
    batch_size: int = field(default=8, metadata={"help": "Images encoded together."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "limit", "batch_size")
        from vlm_detect.benchmark.perturb import CONDITIONS  # late: it knows the operations

        check_known(self, ("all", "tiers", "curves", *CONDITIONS), "conditions")


@dataclass(frozen=True)
class PaperTableOptions:
    """The sets and the models."""

    sets: list[str] = field(metadata={"positional": True, "metavar": "SET", "help": "Dataset folders."})
    models: list[str] = field(metadata={"help": "Run directories, Hub ids or local folders; CNNs too."})
    out: str = field(default="runs/paper_table", metadata={"help": "Folder for the answers and the table."})
    split: str = field(default="test", metadata={"help": "Split of each set, such as test or unseen."})
    limit: int | None = field(default=None, metadata={"help": "Use only the first N images of each set."})
    aligned_side: int = field(
        default=256, metadata={"help": "Side of aligned images in pixels; less if an image of the set is smaller."}
    )
    max_images: int = field(default=2000, metadata={"help": "Images that are audited, of a set without a saved audit."})
    batch_size: int = field(default=8, metadata={"help": "Images per batch."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "limit", "batch_size", "max_images")
        check_at_least(self, 8, "aligned_side")
        named(self.sets, "set")
        named(self.models, "model")


def named(paths: Sequence[str], what: str) -> dict[str, str]:
    """{name in the table: path}; UserError where two have one name."""
    found: dict[str, str] = {}
    for path in paths:
        name = Path(path).name or path
        if name in found:
            raise UserError(f"{found[name]} and {path}: two {what}s are called {name}; rename a folder")
        found[name] = path
    return found


@dataclass(frozen=True)
class CompareOptions:
    """The runs to compare."""

    runs: list[str] = field(metadata={"positional": True, "help": "Result folders and CSV score files."})
    out: str = field(default="runs/compared", metadata={"help": "Folder for compare.json and report.html."})
    benchmark: str | None = field(
        default=None,
        metadata={
            "help": "The benchmark of the items; needed for --by, for blind baselines, and for CSVs without labels."
        },
    )
    split: str = field(default="test", metadata={"help": "Split of --benchmark, if it is a dataset folder."})
    by: list[str] = field(default_factory=list, metadata={"help": "Metadata columns of --benchmark to slice by."})
    explanations: str | None = field(
        default=None,
        metadata={
            "help": "A JSON file for the first run's explanation figures, and its yes/no accuracy against the second's."
        },
    )

    def __post_init__(self) -> None:
        if self.explanations and len(self.runs) != 2:
            raise UserError(
                f"--explanations takes two runs, not {len(self.runs)}: the one that explains, and one without"
            )
        if self.by and not self.benchmark:
            raise UserError("--by needs --benchmark, which has the items' columns")


@dataclass(frozen=True)
class BuildOptions:
    """The items to build, or the benchmark to check."""

    dataset: str | None = field(
        default=None, metadata={"positional": True, "help": "Folder of a pair or image dataset."}
    )
    out: str | None = field(default=None, metadata={"help": "JSON file to write; images go into a folder next to it."})
    split: str = field(default="test", metadata={"help": "Split of the dataset to use."})
    n_true_false: int = field(default=1000, metadata={"help": "Maximum number of yes/no and true/false items."})
    n_multiple_choice: int = field(default=1000, metadata={"help": "Maximum number of four-way items."})
    n_attribution: int = field(default=200, metadata={"help": "Maximum number of items that ask for the generator."})
    n_which_of_two: int = field(default=200, metadata={"help": "Maximum number of items with two images side by side."})
    n_open: int = field(default=200, metadata={"help": "Maximum number of open items (verdict and reasons)."})
    n_items: list[str] = field(
        default_factory=list,
        metadata={"help": "Maximum number of items of a kind from an installed package, as KIND=N."},
    )
    seed: int = field(default=0, metadata={"help": "Random seed."})
    check: str | None = field(
        default=None, metadata={"help": "Print the blind baselines of this benchmark instead of building one."}
    )
    json: bool = field(default=False, metadata={"help": "With --check: print JSON."})
    model: str | None = field(default=None, metadata={"help": "With --check: also the blind baselines of this model."})
    skip_bad: bool = field(default=False, metadata={"help": "With --check: skip invalid items."})

    def __post_init__(self) -> None:
        check_at_least(self, 0, "n_true_false", "n_multiple_choice", "n_attribution", "n_which_of_two", "n_open")
        if bool(self.dataset) == bool(self.check) or (self.dataset and not self.out):
            raise UserError("give a DATASET with --out FILE, or --check FILE")
        if self.n_items:
            from vlm_detect.benchmark.build import sizes_from  # lazy: loads the question kinds of installed packages

            sizes_from(self)


class Layout(str):
    """A name in `VQA_IMPORTERS`, checked when the command line is parsed."""

    def __new__(cls, text: str) -> Layout:
        if text not in VQA_IMPORTERS:
            raise ArgumentTypeError(f"{text}: choose from {', '.join(VQA_IMPORTERS)}")
        return super().__new__(cls, text)


@dataclass(frozen=True)
class ImportOptions:
    """The published set."""

    questions: str = field(metadata={"positional": True, "help": "The published JSON file."})
    layout: Layout = field(metadata={"help": "Layout of the published file.", "aliases": ["--from"]})
    out: str = field(metadata={"help": "JSON file to write."})
    images: str | None = field(
        default=None, metadata={"help": "Folder of the images. Default: the folder of the questions."}
    )
    skip_bad: bool = field(default=False, metadata={"help": "Skip and count invalid rows."})


@dataclass(frozen=True)
class EvidenceOptions:
    """The model and the edits."""

    data: str = field(metadata={"help": "A pair dataset with edits."})
    model: str = field(default="auto", metadata={"help": "Run directory, model folder, Hub id, nano."})
    adapter: str | None = field(default=None, metadata={"help": "A LoRA to apply to the model."})
    split: str = field(default="test", metadata={"help": "Split whose edits are used."})
    topic: Topic = field(
        default="edit", metadata={"help": "Question: edit (was a part altered?) or generation (is it generated?)."}
    )
    limit: int | None = field(default=None, metadata={"help": "Maximum number of edits."})
    out: str | None = field(
        default=None, metadata={"help": "Output folder. Default: `evidence`, next to the run's eval."}
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "limit")
