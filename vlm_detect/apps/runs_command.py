"""The verb `vlm-detect runs`, without heavy imports."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vlm_detect.config import parse_config


@dataclass(frozen=True)
class RunsOptions:
    folder: str = field(
        default="runs", metadata={"positional": True, "help": "The folder that holds the runs, however deep."}
    )
    json: bool = field(default=False, metadata={"help": "The list as JSON on stdout."})
    out: str | None = field(
        default=None, metadata={"metavar": "PAGE", "help": "Write an HTML page with the curves of all runs as well."}
    )


def runs(argv: list[str]) -> None:
    """List training runs: model, data, state (finished, running, interrupted), steps and scores.

    vlm-detect runs
    vlm-detect runs experiments --out runs.html     # with their loss and validation curves, one over the other
    """
    (options,) = parse_config([RunsOptions], argv, doc=runs.__doc__)
    from vlm_detect.apps.runs import find_runs, table, write_runs_page

    found = find_runs(Path(options.folder))
    if options.json:
        print(json.dumps([asdict(run) for run in found], indent=2, ensure_ascii=False))
    else:
        print(table(found))
    if options.out:
        write_runs_page(Path(options.out), options.folder, found)
