"""A local teacher that was tuned to answer as teachers are asked to: nano moondream weights that write JSON.

    save_tuned_teacher(Path("data/pairs"), Path("runs/teacher"), steps=40)

It learns the question's form and words of what the good stand-in sees in pairs of the training split. A network of this
size learns to write it; whether it says so of the right image, a judge has to find out.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from tests.generate.looking_teacher import Shown
from vlm_detect.data.members import open_members
from vlm_detect.generate.asked_models import side_by_side
from vlm_detect.generate.sightings import pair_question
from vlm_detect.models.registry import load_vlm

_BATCH = 4
_LEARNING_RATE = 2e-3


def save_tuned_teacher(pairs: Path, out: Path, *, steps: int, seed: int = 0) -> None:
    vlm = load_vlm("nano")
    examples = _examples(pairs)
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(vlm.model.parameters(), lr=_LEARNING_RATE)
    vlm.model.train()
    for step in range(steps):
        images, prompts, answers = zip(*rng.sample(examples, _BATCH), strict=True)
        # Questions differ in no more than the order of two words, so that rows are about equally long.
        both = zip(prompts, answers, strict=True)
        ids = [[*vlm.question_ids(prompt), *vlm.answer_ids(answer)] for prompt, answer in both]
        inputs = vlm.processor(images=list(images), prompt_ids=ids, padding_side="left")
        logits_btv = vlm.model(**inputs).logits
        losses = []
        for row, answer in enumerate(answers):
            target = torch.tensor(vlm.answer_ids(answer))
            losses.append(F.cross_entropy(logits_btv[row, -len(target) - 1 : -1], target))
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * (1 - step / steps)
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(vlm.model.parameters(), 1.0)
        optimizer.step()
    vlm.model.eval()
    vlm.model.save_pretrained(out)
    vlm.processor.save_pretrained(out)


def _examples(pairs: Path) -> list[tuple[Image.Image, str, str]]:
    """(both images side by side, question, answer) in both orders, of every pair that differs visibly."""
    members = open_members(str(pairs))
    found = []
    for number, split, row in members.numbered(0, members.rows):
        pair = members.of_row(number, split, row)
        if split != "train" or (pair[0].label, pair[1].label) != ("real", "generated"):
            continue
        images = [member.image.open() for member in pair]
        for photo_first in (True, False):
            shown = images if photo_first else images[::-1]
            seen = Shown([np.asarray(image) for image in shown], 2 if photo_first else 1, 0).differences()
            if seen:
                answer = json.dumps({"seen": [{**seen[0], "box": None}]})
                found.append((side_by_side(shown), pair_question(photo_first=photo_first, twin="generated"), answer))
    return found
