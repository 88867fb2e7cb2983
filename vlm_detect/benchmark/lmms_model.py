"""moondream and every other model or run of ours as a model of lmms-eval, which imports this module by its entry point.

    lmms-eval --model vlm_detect --model_args pretrained=runs/moondream_lora --tasks mme --batch_size 8

One image or none a question, and free answers: tasks of several rounds or of likelihoods are refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

from vlm_detect.benchmark.lmms_requests import Decoding, Request, generate
from vlm_detect.errors import UserError
from vlm_detect.infer.engine import Engine
from vlm_detect.machine import dtype_of
from vlm_detect.models.registry import load_vlm

_DEFAULT_BATCH = 16  # of `--batch_size auto`; the engine takes fewer where memory is short


class VlmDetect(lmms):
    """`--model_args`: pretrained (a Hub id, a folder, a run, `nano` or `auto`), adapter, revision, dtype.

    Raises:
        UserError: if the model cannot be found, downloaded or read, and for a task that it cannot do.
    """

    is_simple = True

    def __init__(
        self,
        *,
        pretrained: str = "auto",
        adapter: str | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator()  # by which lmms-eval waits for all processes
        vlm = load_vlm(pretrained, adapter=adapter, revision=revision, dtype=dtype_of(dtype), device=device)
        self.device = vlm.device  # lmms-eval gathers counts there
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else max_batch_size or _DEFAULT_BATCH
        self.engine = Engine(vlm, batch_images=self.batch_size)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        by_decoding: dict[Decoding, list[int]] = {}
        unknown: set[str] = set()
        for place, request in enumerate(requests):
            decoding, others = Decoding.read(request.args[1])
            unknown |= set(others)
            by_decoding.setdefault(decoding, []).append(place)
        if unknown and self.rank == 0:
            print(f"generation_kwargs without effect on this model: {', '.join(sorted(unknown))}", file=sys.stderr)
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="answered", disable=self.rank != 0) as progress:
            for decoding, places in by_decoding.items():
                for start in range(0, len(places), self.batch_size):
                    some = places[start : start + self.batch_size]
                    asked = [self._asked(requests[i].args[0], *requests[i].args[2:]) for i in some]
                    for place, text in zip(some, generate(self.engine, asked, decoding), strict=True):
                        texts[place] = text
                    progress.update(len(some))
        return texts

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """lmms-eval 0.7.3 turns every result into text before it reads it, and fails on these."""
        raise UserError(f"{requests[0].task_name} asks for likelihoods: choose a task of free answers")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise UserError(f"{requests[0].task_name} has several rounds: choose a task of single questions")

    def clean(self) -> None:
        """Free the model's memory, once everything is answered."""
        del self.engine
        super().clean()

    def _asked(self, context: str, to_visual: Any, doc_id: int, task: str, split: str) -> Request:
        return Request.read(f"{task}, document {doc_id}", to_visual(self.task_dict[task][split][doc_id]), context)
