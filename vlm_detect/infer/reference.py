"""The reference path: everything is recomputed for every answer, no caching, no packing, batch size one.

Correct for every model, and slow. The engine uses it for models whose image prefix depends on what follows, and is
tested against it for all others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from vlm_detect.infer.asks import CandidateScore, greedy
from vlm_detect.infer.prefixes import check_length
from vlm_detect.machine import on_device
from vlm_detect.models.base import VLM
from vlm_detect.models.prompt import numbers_of, stack_numbers
from vlm_detect.models.rows import Answered, Row, stack_rows


@torch.inference_mode()
def score_plain(vlm: VLM, image: Image.Image, question: str, answer: str, *, whole: bool = True) -> CandidateScore:
    """The log-probability of `answer` to `question` about `image`, with the end of text if the answer is complete."""
    ids = vlm.answer_ids(answer)
    ids = ids if whole else ids[:-1]
    inputs = plain_inputs(vlm, image, vlm.question_ids(question), ids)
    logits = vlm.model(**inputs, use_cache=False).logits[0, -len(ids) - 1 : -1].float()
    logprobs = logits.log_softmax(-1)
    tokens = on_device(torch.tensor(ids), vlm.device)[:, None]
    return CandidateScore(sum(logprobs.gather(1, tokens).flatten().tolist()), len(ids))


@torch.inference_mode()
def generate_plain(
    vlm: VLM, image: Image.Image | None, prompt_ids: Sequence[int], max_new_tokens: int, **options: Any
) -> str:
    """Text after `prompt_ids` (after the image prefix), greedy unless `options` (of transformers' generate) say
    otherwise."""
    inputs = plain_inputs(vlm, image, prompt_ids)
    # As a configuration: some models pass ids of their own on to their decoder, next to these.
    settings = copy.deepcopy(vlm.model.generation_config)
    others = settings.update(
        max_new_tokens=max_new_tokens,
        pad_token_id=vlm.eos_token_id,
        eos_token_id=vlm.eos_token_id,
        **{"do_sample": False, **options},
    )
    output = vlm.model.generate(**inputs, generation_config=settings, **others)
    read = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0  # from embeddings, only new ids come back
    return vlm.decode([token for token in output[0, read:].tolist() if token != vlm.eos_token_id]).strip()


@torch.inference_mode()
def stream_plain(
    vlm: VLM,
    images: Sequence[Image.Image | None],
    prompts: Sequence[Sequence[Sequence[int]]],
    max_new_tokens: int,
    choose: Callable[[torch.Tensor], torch.Tensor] = greedy,
) -> Iterator[torch.Tensor]:
    """As `Engine.stream`, but each step reads the image again."""
    width, eos = max(map(len, prompts)), vlm.eos_token_id
    if not width:
        return
    written: list[list[list[int]]] = [[[] if i < len(row) else [eos] for i in range(width)] for row in prompts]
    for _ in range(max_new_tokens):
        step = torch.full((len(images), width), eos, device=vlm.device)
        for b, (image, row) in enumerate(zip(images, prompts, strict=True)):
            for i, prompt in enumerate(row):
                if written[b][i][-1:] != [eos]:
                    inputs = plain_inputs(vlm, image, prompt, written[b][i])
                    logits = vlm.model(**inputs, use_cache=False).logits[:, -1:]
                    if written[b][i] and vlm.first_only_ids:
                        logits[..., list(vlm.first_only_ids)] = -torch.inf
                    step[b, i] = choose(logits)[0, 0]
                    written[b][i].append(int(step[b, i]))
        yield step
        if all(ids[-1] == eos for row in written for ids in row):
            return


def plain_inputs(
    vlm: VLM, image: Image.Image | None, prompt: Sequence[int], answer: Sequence[int] = ()
) -> dict[str, Any]:
    """Arguments of one forward pass over [prefix, prompt, answer]; the prefix is of an image or of text only."""
    prepared = None if image is None else vlm.prepare([image])
    if prepared is None:
        prefix = vlm.text_prefix_ids()
    else:
        prefix = vlm.prefix_ids() if vlm.has_fixed_prefix else vlm.prefix_rows(prepared)[0]
    length = len(prefix) + len(prompt) + len(answer)
    check_length(vlm, length)
    if prepared is not None and not vlm.has_fixed_prefix:
        row = Row()
        row.add(0, prefix, [Answered(list(prompt), list(answer))])
        columns = stack_rows([row], vlm.eos_token_id)
        return vlm.row_inputs(vlm.encode(prepared), {**columns, "host_inputs": vlm.host_inputs(prepared, columns)})
    inputs: dict[str, Any]
    if prepared is None:
        inputs = {"input_ids": torch.tensor([prefix], device=vlm.device)}
    else:
        inputs = vlm.prefix_inputs(vlm.encode(prepared))
    rest = torch.tensor([[*prompt, *answer]], device=vlm.device)
    if "inputs_embeds" in inputs:
        embeds = vlm.model.get_input_embeddings()(rest)
        inputs["inputs_embeds"] = torch.cat([inputs["inputs_embeds"], embeds], dim=1)
    else:
        inputs["input_ids"] = torch.cat([inputs["input_ids"], rest], dim=1)
    inputs["attention_mask"] = torch.ones((1, length), dtype=torch.long, device=vlm.device)
    numbers = {len(prefix) + index: value for index, value in numbers_of(prompt).items()}
    inputs |= {name: part.to(vlm.device) for name, part in stack_numbers([numbers], length).items()}
    return inputs
