"""The engine: read an image once, then ask anything of it. Captioning, benchmark, chat, scan and serve all use it.

    engine = Engine(load_vlm("nano"))
    engine.score([photo], [[Ask("Is this image AI-generated?", ("Yes.", "No."))]])     # log-probabilities, one forward
    engine.generate([photo], [["What is in the picture?"]])                            # greedy text
    engine.caption([photo])

Images are encoded in one batch of the tower and laid into the decoder's cache once; the prefix stays in memory (bounded
in bytes, oldest out first) for later calls. All questions and candidate answers of an image then ride behind it in one
packed row. `vlm_detect.infer.reference` is the plain path that this one must agree with; models whose image prefix
depends on what follows it take it instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from transformers.cache_utils import DynamicCache

from vlm_detect.errors import UserError
from vlm_detect.infer.asks import Ask, CandidateScore, greedy
from vlm_detect.infer.packing import Packed, pad_packed
from vlm_detect.infer.prefixes import Prefix, PrefixMemory, encode, equal_lengths, prefill, stack_prefixes
from vlm_detect.infer.reference import generate_plain, score_plain, stream_plain
from vlm_detect.models.base import VLM


class Engine:
    """Asks one model about images, in batches of `batch_images` images.

    `cache_bytes` bounds the memory of image prefixes that are kept between calls.
    """

    def __init__(self, vlm: VLM, *, batch_images: int = 16, batch_rows: int = 64, cache_bytes: int = 2 << 30) -> None:
        self.vlm = vlm
        self.batch_images = batch_images
        self.batch_rows = batch_rows
        self.memory = PrefixMemory(vlm, cache_bytes)

    # Prefixes

    def prefixes(self, images: Sequence[Image.Image]) -> list[Prefix]:
        """The prefix of each image, from memory where it is held."""
        return self.memory.prefixes(images)

    def encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Image embeddings (B, N, D), read anew."""
        return encode(self.vlm, images)

    def prefill(self, embeds: torch.Tensor) -> list[Prefix]:
        """The prefix of each of (B, N, D) image embeddings; none is kept."""
        return prefill(self.vlm, embeds)

    # Scoring

    def score(self, images: Sequence[Image.Image], asks: Sequence[Sequence[Ask]]) -> list[list[list[CandidateScore]]]:
        """Log-probabilities of whole answers: for each image, for each of its asks, one score a candidate."""
        if not self.vlm.caches:
            return [
                [[score_plain(self.vlm, image, a.question, one, whole=a.whole) for one in a.candidates] for a in some]
                for image, some in zip(images, asks, strict=True)
            ]
        scores: list[list[list[CandidateScore]]] = []
        for some_images, some_asks in batches(images, asks, self.batch_images):
            prefixes = self.prefixes(some_images)
            found: dict[int, list[list[CandidateScore]]] = {}
            for alike in equal_lengths(prefixes):
                scored = self.score_prefixes([prefixes[i] for i in alike], [some_asks[i] for i in alike])
                found |= dict(zip(alike, scored, strict=True))
            scores += [found[i] for i in range(len(prefixes))]
        return scores

    @torch.inference_mode()
    def score_prefixes(
        self, prefixes: Sequence[Prefix], asks: Sequence[Sequence[Ask]]
    ) -> list[list[list[CandidateScore]]]:
        """As `score`, behind prefixes of one length that make one batch."""
        rows, spans = zip(*(self._pack(image_asks) for image_asks in asks), strict=True)
        prefix_length = len(prefixes[0])
        self._check_length(prefix_length + max(end for row in rows for end in row.ends))
        ids, positions, mask = pad_packed(rows, prefix_length, self.vlm.eos_token_id)
        # Logits are made only where an answer's token is predicted: of a few positions, not of every one.
        needed = sorted({source for row in spans for ask in row for answer in ask for source, _ in answer})
        place = {position: i for i, position in enumerate(needed)}
        positions += torch.tensor([[prefix.shift] for prefix in prefixes])
        ids, positions, mask = (part.to(self.vlm.device) for part in (ids, positions, mask))
        logits_at = torch.tensor(needed, device=self.vlm.device)
        logits = self._forward(ids, positions, mask, stack_prefixes(prefixes), logits_at)
        logprobs = logits.float().log_softmax(-1)  # (B, needed, V)
        # Picked at once: on a GPU every number that is fetched by itself is waited for.
        chosen = [
            (i, place[source], token)
            for i, row in enumerate(spans)
            for ask in row
            for answer in ask
            for source, token in answer
        ]
        picked = iter(logprobs[tuple(torch.tensor(chosen, device=self.vlm.device).T)].tolist())
        return [
            [[CandidateScore(sum(next(picked) for _ in answer), len(answer)) for answer in ask] for ask in row]
            for row in spans
        ]

    def _pack(self, asks: Sequence[Ask]) -> tuple[Packed, list[list[list[tuple[int, int]]]]]:
        """One image's row, and for each ask and candidate its (predicting index, predicted token) pairs."""
        packed = Packed()
        spans = []
        for ask in asks:
            question = packed.add(self.vlm.question_ids(ask.question))
            answers = []
            for candidate in ask.candidates:
                ids = self.vlm.answer_ids(candidate)
                ids = ids if ask.whole else ids[:-1]
                first = len(packed.ids)
                packed.add(ids[:-1], parent=question)  # the last is predicted, never read
                sources = [packed.last_index[question], *range(first, first + len(ids) - 1)]
                answers.append(list(zip(sources, ids, strict=True)))
            spans.append(answers)
        return packed, spans

    def _mask(self, mask: torch.Tensor) -> torch.Tensor:
        """Eager and flex attention add their mask to the scores; the others take a bool one."""
        if self.vlm.model.config._attn_implementation not in ("eager", "flex_attention"):
            return mask
        dtype = self.vlm.model.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    def _check_length(self, length: int) -> None:
        if length > self.vlm.context:
            raise UserError(
                f"image and prompt make {length} tokens, the model's context is {self.vlm.context}: "
                "shorten the question"
            )

    # Generation

    def generate(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[Sequence[str]],
        max_new_tokens: int = 32,
        **options: Any,
    ) -> list[list[str]]:
        """An answer to each question of each image; greedy unless `options` (transformers' generate) say otherwise."""
        prompts = [[self.vlm.question_ids(question) for question in some] for some in questions]
        return self.continue_prompts(images, prompts, max_new_tokens, **options)

    def caption(
        self, images: Sequence[Image.Image], length: str = "normal", max_new_tokens: int = 128, **options: Any
    ) -> list[str]:
        """A caption of each image."""
        prompt = self.vlm.caption_ids(length)
        answers = self.continue_prompts(images, [[prompt]] * len(images), max_new_tokens, **options)
        return [answer for (answer,) in answers]

    @torch.inference_mode()
    def continue_prompts(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[Sequence[Sequence[int]]],
        max_new_tokens: int,
        **options: Any,
    ) -> list[list[str]]:
        """Text generated behind each prompt (ids after the image prefix) of each image.

        Greedy answers to all prompts of an image grow side by side behind one prefix. `options` (sampling, a streamer)
        go through transformers' generate, one row a prompt.
        """
        if not (self.vlm.same_prefix or (self.vlm.caches and not options)):
            return [
                [generate_plain(self.vlm, image, prompt, max_new_tokens, **options) for prompt in some]
                for image, some in zip(images, prompts, strict=True)
            ]
        answers: list[list[str]] = [[] for _ in images]
        if not options:
            for start in range(0, len(images), self.batch_images):
                some = slice(start, start + self.batch_images)
                answers[some] = self._generate_packed(images[some], prompts[some], max_new_tokens)
            return answers
        rows = [(i, prompt) for i, some in enumerate(prompts) for prompt in some]
        for start in range(0, len(rows), self.batch_rows):
            batch = rows[start : start + self.batch_rows]
            texts = self._generate_rows([images[i] for i, _ in batch], [p for _, p in batch], max_new_tokens, options)
            for (i, _), text in zip(batch, texts, strict=True):
                answers[i].append(text)
        return answers

    def room(self, prompt: Sequence[int]) -> int:
        """How many tokens can follow `prompt` behind an image; UserError where there is no place for one."""
        length = len(self.vlm.prefix_ids()) + len(prompt)
        self._check_length(length + 1)
        return self.vlm.context - length

    def _generate_packed(
        self, images: Sequence[Image.Image], prompts: Sequence[Sequence[Sequence[int]]], max_new_tokens: int
    ) -> list[list[str]]:
        """Greedy answers to every prompt of every image."""
        answers: list[list[str]] = [[] for _ in images]
        prefixes = self.prefixes(images)
        for alike in equal_lengths(prefixes):
            some = [prompts[i] for i in alike]
            for prompt in (prompt for row in some for prompt in row):
                self._check_length(len(prefixes[alike[0]]) + len(prompt) + max_new_tokens)
            steps = list(self._stream([prefixes[i] for i in alike], some, max_new_tokens))
            if not steps:
                continue
            ids_of, eos = torch.stack(steps, dim=-1).tolist(), self.vlm.eos_token_id  # (B, prompts, steps)
            for i, row_ids in zip(alike, ids_of, strict=True):
                texts = [self.vlm.decode(until(tokens, eos)).strip() for tokens in row_ids[: len(prompts[i])]]
                answers[i] = texts
        return answers

    @torch.inference_mode()
    def stream(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[Sequence[Sequence[int]]],
        max_new_tokens: int,
        choose: Callable[[torch.Tensor], torch.Tensor] = greedy,
    ) -> Iterator[torch.Tensor]:
        """Decode every prompt of every image at once, one step an iteration.

        Yields ids (images, most prompts of an image): the next token of each prompt, the end of text for those that
        have ended or are not there. `choose` turns logits (images, prompts, vocabulary) into ids. The images make one
        batch, of prefixes of one length, and the caller sees to it that no prompt is followed for longer than there is
        `room`.
        """
        if self.vlm.caches:
            yield from self._stream(self.prefixes(images), prompts, max_new_tokens, choose)
        else:
            yield from stream_plain(self.vlm, images, prompts, max_new_tokens, choose)

    @torch.inference_mode()
    def _stream(
        self,
        prefixes: Sequence[Prefix],
        prompts: Sequence[Sequence[Sequence[int]]],
        max_new_tokens: int,
        choose: Callable[[torch.Tensor], torch.Tensor] = greedy,
    ) -> Iterator[torch.Tensor]:
        """As `stream`, behind prefixes of one length."""
        rows = []
        for image_prompts in prompts:
            rows.append(Packed())
            for prompt in image_prompts:
                rows[-1].add(prompt)
        width = max(len(row.ends) for row in rows)  # prompts an image
        if not width:
            return
        prefix_length = len(prefixes[0])
        device, eos = self.vlm.device, self.vlm.eos_token_id
        ids, positions, mask = (part.to(device) for part in pad_packed(rows, prefix_length, eos))
        shifts = torch.tensor([[prefix.shift] for prefix in prefixes], device=device)
        positions += shifts
        cache = stack_prefixes(prefixes)
        # Of each row and prompt: where it ends, what it may see, and whether it is there at all.
        there = torch.tensor([[i < len(row.ends) for i in range(width)] for row in rows], device=device)
        last = torch.tensor([row.last_index + [0] * (width - len(row.ends)) for row in rows], device=device)
        next_position = torch.tensor([row.ends + [0] * (width - len(row.ends)) for row in rows], device=device)
        next_position += prefix_length + shifts
        seen = mask.gather(2, last[:, None, :, None].expand(-1, -1, -1, mask.shape[-1]))  # (B, 1, prompts, P + T)
        itself = torch.eye(width, dtype=torch.bool, device=device).expand(len(rows), 1, -1, -1)

        needed = last.unique()
        outputs = self._forward(ids, positions, mask, cache, needed)
        logits = outputs.gather(1, torch.searchsorted(needed, last)[..., None].expand(-1, -1, outputs.shape[-1]))
        ended = ~there
        for step in range(max_new_tokens):
            if step == 1:
                suppressed = torch.zeros(logits.shape[-1], device=device)
                suppressed[list(self.vlm.first_only_ids)] = -torch.inf
            chosen = choose(logits if step == 0 else logits + suppressed)  # (B, prompts)
            chosen = torch.where(ended, eos, chosen)
            yield chosen
            ended = ended | (chosen == eos)
            if bool(ended.all()) or step + 1 == max_new_tokens:
                return
            seen = torch.cat([seen, itself], dim=-1)
            logits = self._forward(chosen, next_position + step, seen, cache, None)

    def _forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        cache: DynamicCache,
        logits_at: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits (B, positions, V) behind packed tokens (B, T); at all of them where `logits_at` is None."""
        return self.vlm.model(
            input_ids=ids,
            position_ids=self.vlm.position_ids(positions),
            attention_mask=self._mask(mask),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=0 if logits_at is None else logits_at,
        ).logits

    def _generate_rows(
        self, images: list[Image.Image], prompts: list[Sequence[int]], max_new_tokens: int, options: dict[str, Any]
    ) -> list[str]:
        prefixes = self.prefixes(images)
        prefix_ids = self.vlm.prefix_ids()
        longest = max(map(len, prompts))
        self._check_length(len(prefix_ids) + longest + max_new_tokens)
        pad_id = self.vlm.eos_token_id
        pads = [longest - len(prompt) for prompt in prompts]
        # Shorter prompts are padded between prefix and prompt; the mask hides the padding and the positions skip it.
        input_ids = torch.tensor(
            [[*prefix_ids, *[pad_id] * pad, *prompt] for pad, prompt in zip(pads, prompts, strict=True)]
        )
        attention_mask = torch.ones_like(input_ids)
        for row, pad in zip(attention_mask, pads, strict=True):
            row[len(prefix_ids) : len(prefix_ids) + pad] = 0
        output = self.vlm.model.generate(
            input_ids=input_ids.to(self.vlm.device),
            attention_mask=attention_mask.to(self.vlm.device),
            past_key_values=stack_prefixes(prefixes),
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_id,
            eos_token_id=self.vlm.eos_token_id,
            **{"do_sample": False, **options},
        )
        return [self.vlm.decode(row[input_ids.shape[1] :].tolist()).strip() for row in output]


def until(ids: list[int], end: int) -> list[int]:
    """Ids before the first `end`."""
    return ids[: ids.index(end)] if end in ids else ids


def batches(
    images: Sequence[Image.Image], asks: Sequence[Sequence[Ask]], size: int
) -> Iterator[tuple[Sequence[Image.Image], Sequence[Sequence[Ask]]]]:
    """Consecutive slices of at most `size` images with their asks."""
    if len(images) != len(asks):
        raise ValueError(f"{len(images)} images with {len(asks)} lists of asks: give one list an image")
    for start in range(0, len(images), size):
        yield images[start : start + size], asks[start : start + size]
