"""Whether questions may share an image's prefix, measured on the loaded model by a few small forwards.

    probe_packing(vlm)              # rows of several questions and images, as in training
    probe_prefix_cache(vlm)         # questions behind a prefix that was prefilled once, as at inference

Both compare the logits that predict an answer with those of the plain path, one question a row. A layout that a model
follows changes them by rounding alone. One that it does not (its image sees the question, it counts positions itself,
it has a state in place of attention) changes them about as much as another question does. So a change is measured in
proportion to the difference between two questions, which needs no scale of its own.

A short row cannot show what only a long one meets: `ChatVLM` knows of sliding windows, and attention in chunks is
refused unmeasured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers.cache_utils import Cache

from vlm_detect.machine import on_device
from vlm_detect.models.continuation import AfterPrefix, forward, read_prefix
from vlm_detect.models.generic.levels import noise
from vlm_detect.models.generic.measuring import Refused, measuring, tolerance_of
from vlm_detect.models.rows import PREFIX, Answered, Row, may_look, stack_rows

if TYPE_CHECKING:
    from vlm_detect.models.generic.family import ChatVLM

_QUESTIONS = ("Is it AI-generated?", "Which city is this, and what is the weather like there today?")
_ANSWER = "Yes."
_SHAPES = ((112, 112), (112, 28))  # (width, height); the columns of a strip may be numbered as a sequence is
_SHORT = 512  # tokens of a prefix: a square that takes more, because it is cut into many tiles, gives way to a strip
# Rows of images, each with the questions behind it, by their numbers.
_APART = [[(0, [0])], [(0, [1])], [(1, [0])]]
_BY_IMAGE = [[(0, [0, 1])], [(1, [0])]]
_IN_ONE_ROW = [[(0, [0, 1]), (1, [0])]]

_Layout = Sequence[Sequence[tuple[int, Sequence[int]]]]


class Packing(NamedTuple):
    """Why questions are not packed (None: they are), and whether the tokens of one image see each other both ways."""

    refusal: str | None
    two_way_images: bool = False


def probe_packing(vlm: ChatVLM) -> Packing:
    """Three questions about two images in one row, under a causal mask and one in which an image sees all of itself."""
    try:
        with _on_rows(vlm):
            asked = _Asked(vlm)
            change, two_way = min((asked.change_in_one_row(two_way), two_way) for two_way in (False, True))
            asked.check(change)
    except Refused as refused:
        return Packing(str(refused))
    return Packing(None, two_way)


def probe_prefix_cache(vlm: ChatVLM) -> str | None:
    """Why prefixes are not cached; None: they are. Two images are prefilled together, and three questions follow."""
    try:
        with _on_rows(vlm):
            asked = _Asked(vlm)
            asked.check(asked.change_behind_cache())
    except Refused as refused:
        return str(refused)
    return None


@contextmanager
def _on_rows(vlm: ChatVLM) -> Iterator[None]:
    if "chunked_attention" in (getattr(vlm.model.config.get_text_config(), "layer_types", None) or ()):
        raise Refused("its attention in chunks is not supported")
    with measuring(vlm, "its forward fails on such rows"):
        yield


class _Asked:
    """Two small images of equal prefix length P and two questions with an answer of A tokens each, on the plain path.

    Raises Refused where there is no prefix, or one that depends on what follows it.
    """

    def __init__(self, vlm: ChatVLM) -> None:
        self.vlm = vlm
        size = min(_SHAPES, key=lambda size: max(_SHORT, vlm.prefix_length(size)))
        self.images = vlm.prepare([noise(size, seed) for seed in range(2)])
        answer = vlm.answer_ids(_ANSWER)
        self.asked = [Answered(vlm.question_ids(question), answer) for question in _QUESTIONS]
        self.head, self.answers, self.prefixes = self._states(_APART)
        if not self.prefixes.numel():
            raise Refused("its prompt has no tokens of an image")
        change = _change(self.prefixes[:1], self.prefixes[1:2], self.answers)
        self.check(change, "its image prefix changes with what follows")

    def check(self, change: float, what: str = "answers change") -> None:
        """Raise Refused for a change that is more than rounding."""
        limit = tolerance_of(self.vlm.model)
        if not change <= limit:  # NaN is no equality
            raise Refused(f"{what} by {change:.2g} of what another question changes, more than {limit:g}")

    def change_in_one_row(self, two_way: bool) -> float:
        _, answers, prefixes = self._states(_IN_ONE_ROW, two_way)
        return max(_change(answers, self.answers, self.answers), _change(prefixes, self.prefixes[[0, 2]], self.answers))

    def change_behind_cache(self) -> float:
        vlm, columns = self.vlm, self._columns(_BY_IMAGE)
        embeds = vlm.encode(self.images)
        prefix = read_prefix(vlm, embeds)
        length = self.prefixes.shape[1]
        ids, positions = (columns[name][:, length:] for name in ("ids", "position_ids"))
        positions = positions + torch.tensor(vlm.shifts(embeds))[:, None]
        row, place = columns["predicting"] // columns["ids"].shape[1], columns["predicting"] % columns["ids"].shape[1]
        needed, at = place.unique(return_inverse=True)
        read = [ids, positions, may_look(columns)[:, None, length:], needed - length]
        ids, positions, mask, logits_at = (on_device(tensor, vlm.device) for tensor in read)
        behind = Cache(layers=[AfterPrefix(layer.keys, layer.values) for layer in prefix.layers])
        logits = forward(vlm, ids, positions, mask, behind, logits_at).logits[row, at]
        plain = self.head(self.answers)
        return _change(logits.view(plain.shape), plain, plain)

    def _states(self, layout: _Layout, two_way: bool = False) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """The vocabulary head, and its inputs: before each token of an answer (3, A, D), in the prefixes (N, P, D)."""
        vlm, columns = self.vlm, self._columns(layout, two_way)
        batch = {**columns, "host_inputs": vlm.host_inputs(self.images, columns)}
        head, states = vlm.head_and_inputs(vlm.model, vlm.row_inputs(vlm.encode(self.images), batch))
        answers = states.flatten(0, 1)[columns["predicting"]]
        prefixes = states[(columns["branch"] == PREFIX).to(states.device)]
        return head, answers.unflatten(0, (3, -1)), prefixes.unflatten(0, (len(columns["row_order"]), -1))

    def _columns(self, layout: _Layout, two_way: bool = False) -> dict[str, Any]:
        rows, prefixes = [], self.vlm.prefix_rows(self.images)
        for images in layout:
            rows.append(Row())
            for image, questions in images:
                blocks = self.vlm.image_runs(prefixes[image]) if two_way else ()
                rows[-1].add(image, prefixes[image], [self.asked[number] for number in questions], blocks)
        return stack_rows(rows, self.vlm.eos_token_id)


def _change(found: torch.Tensor, plain: torch.Tensor, answers: torch.Tensor) -> float:
    """The change of a question or prefix (N, T, D) that changes most, in proportion to how far two questions differ
    where their answers (3, A, D) begin."""
    between = (answers[0, 0] - answers[1, 0]).float().norm()
    changes = (found.float() - plain.float()).norm(dim=-1).square().mean(dim=-1).sqrt()  # root mean square, (N,)
    return float(changes.max() / between)
