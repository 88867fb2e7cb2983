"""Prompts of a model that has a chat template: what comes before the image's end, the question, and the answer's end.

    template = ChatTemplate(processor)
    template.before                      # text of a user's turn with an image, the question left open
    template.question_ids("What is it?")   # ids behind the image, to the point where the answer begins
    template.answer_ids("A ship.")

Ids are those that the processor itself makes of the whole conversation. A question cannot forge a marker: special
tokens that it spells out stay text.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import PreTrainedTokenizerBase

from vlm_detect.errors import UserError, first_line

IMAGE_WORD = "<image>"  # an image's place, as people write it in the text of a conversation
_NOT_READ = ("labels", "text_replacement_offsets")  # what some processors make that no forward takes
_QUESTION, _ANSWER = "Qzxq", "Azxa"  # stand for a question and an answer while a template is taken apart

_PLAIN_TEMPLATE = (
    "{% for m in messages %}{% for p in m['content'] %}{{ '@' if p['type'] == 'image' else p['text'] }}{% endfor %}"
    "{{ '\\n' }}{% endfor %}"
)


class ChatTemplate:
    """The parts of a processor's chat template.

    A processor without one gets a plain template: the image, the text, a line break. `image_ids` are the ids that stand
    for an image; a processor may use none of them. Raises UserError for a template that leaves the question out.
    """

    def __init__(self, processor: Any, image_ids: Sequence[int], name: str) -> None:
        self.processor, self.name = processor, name
        self.image_ids = frozenset(image_ids)
        self.chat_template = getattr(processor, "chat_template", None) or self._plain_template()
        self.whole = self._render()
        if _QUESTION not in self.whole:
            raise UserError(f"{name}: its chat template drops the user's text; see its chat_template.jinja")

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer

    @staticmethod
    def _turn(question: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}

    def _render(self, answer: str | None = None, question: str = _QUESTION) -> str:
        messages = [self._turn(question)]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return self._apply(messages, add_generation_prompt=answer is None)

    def _apply(self, messages: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        options = {"chat_template": self.chat_template, "add_generation_prompt": add_generation_prompt}
        return str(self.processor.apply_chat_template(messages, tokenize=False, **options))

    def inputs(self, image: Image.Image, **settings: Any) -> dict[str, torch.Tensor]:
        """The processor's tensors for one image and the open question, a batch of one; `settings` are those of its
        image processor."""
        return self._called([image], [self.whole], **settings)

    def _inputs(self, image: Image.Image, text: str) -> dict[str, torch.Tensor]:
        return self._called([image], [text])

    def _called(self, images: list[Image.Image], texts: list[str], **settings: Any) -> dict[str, torch.Tensor]:
        bos = self.tokenizer.bos_token  # templates that write it themselves are tokenized without another
        options = {"add_special_tokens": False} if bos and self.whole.startswith(bos) else {}
        made = self._processed(images, texts, **options, **settings)
        return {name: _as_tensor(value) for name, value in made.items() if name not in _NOT_READ}

    def _processed(self, images: list[Image.Image], texts: list[str], **options: Any) -> Any:
        """Raises UserError for a processor that fails on images; those of a shape that it refuses are a ValueError."""
        try:
            return self.processor(images=images, text=texts, return_tensors="pt", **options)
        except (TypeError, AttributeError) as error:
            processor = f"{type(self.processor).__name__} of transformers {transformers.__version__}"
            raise UserError(
                f"{self.name}: {processor} cannot read an image by Pillow ({first_line(error)}): not supported"
            ) from error

    @cached_property
    def token_names(self) -> frozenset[str]:
        """The tensors that have a column for each token: those that a longer text makes longer."""
        image = Image.new("RGB", (64, 64))
        shorter, longer = self._inputs(image, self.whole), self._inputs(image, self._render(question=_QUESTION * 8))
        return frozenset(
            name for name, tensor in shorter.items() if tensor.ndim > 1 and tensor.shape[1] != longer[name].shape[1]
        )

    @cached_property
    def joined_along(self) -> dict[str, int]:
        """For each tensor of images the dimension in which the processor joins those of several images."""
        image = Image.new("RGB", (64, 64))
        one = self.inputs(image)
        try:
            both = self._called([image, image], [self.whole, self.whole])
        except (ValueError, TypeError, UserError):  # a processor of one image at a time
            return {}
        found = {}
        for name in one.keys() & both.keys():
            sizes = zip(one[name].shape, both[name].shape, strict=False)
            found[name] = next((d for d, (single, double) in enumerate(sizes) if double == 2 * single), 0)
        return found

    def _plain_template(self) -> str:
        """For models that were published without one: the image, the text, a line break."""
        print(f"{self.name}: no chat template; a question follows its image as plain text", file=sys.stderr)
        words = [getattr(self.processor, "image_token", None), IMAGE_WORD, ""]
        known = self.tokenizer.get_vocab()
        for word in [str(word) for word in words if word in known or word == ""]:
            try:  # some processors write the image's place themselves
                self._processed([Image.new("RGB", (64, 64))], [word + _QUESTION])
            except ValueError:
                continue
            return _PLAIN_TEMPLATE.replace("@", word)
        raise UserError(f"{self.name}: no chat template, and no known way to write an image's place into its prompts")

    def prefix_length(self, inputs: dict[str, torch.Tensor]) -> int:
        """How many ids of a prompt end with its image; without tokens of an image, none."""
        ids = inputs["input_ids"][0].tolist()
        places = [place for place, token in enumerate(ids) if token in self.image_ids]
        for name, tensor in inputs.items():  # a mask of the image's places, which text is outside of
            if tensor.shape == inputs["input_ids"].shape and name.startswith("image") and not tensor[0, -1]:
                places += tensor[0].nonzero().flatten().tolist()
        return max(places, default=-1) + 1

    @cached_property
    def _anchor(self) -> list[int]:
        """The last id of the prefix, behind which text is encoded as the middle of a text."""
        inputs = self.inputs(Image.new("RGB", (64, 64)))
        return inputs["input_ids"][0, : self.prefix_length(inputs)].tolist()[-1:]

    @cached_property
    def _tail(self) -> tuple[str, str]:
        """The text between image and question, and between question and answer, as the processor expands it."""
        inputs = self.inputs(Image.new("RGB", (64, 64)))
        tail = inputs["input_ids"][0, self.prefix_length(inputs) :].tolist()
        image = self._anchor_text
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        text = self.tokenizer.decode([*self._anchor, *tail], **options).removeprefix(image)
        if _QUESTION not in text:
            processor = type(self.processor).__name__
            raise UserError(f"{self.name}: {processor} writes prompts of its own, without the question: not supported")
        before, _, after = text.partition(_QUESTION)
        if self._encode_tail(before + _QUESTION + after) != tail:
            raise UserError(f"{self.name}: its tokenizer does not give the template's text back ({text!r})")
        return before, after

    @cached_property
    def _anchor_text(self) -> str:
        return "".join(self.tokenizer.convert_ids_to_tokens(self._anchor))

    def _encode_tail(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(self._anchor_text + text, add_special_tokens=False)
        return ids[len(self._anchor) :]

    def _plain(self, text: str) -> list[int]:
        """The ids of a text in which nothing is a special token, whatever it spells."""
        ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if not self.image_ids.intersection(ids):
            return ids
        # A tokenizer to which its image token is a word like others: cut in two it is none.
        pieces = [text]
        for image in self.tokenizer.convert_ids_to_tokens(sorted(self.image_ids)):
            pieces = [part for piece in pieces for part in piece.replace(image, f"{image[0]}\0{image[1:]}").split("\0")]
        return [i for piece in pieces for i in self.tokenizer.encode(piece, add_special_tokens=False)]

    def _spells_tokens(self, *texts: str) -> bool:
        return any(token in text for text in texts for token in self.tokenizer.get_added_vocab())

    @cached_property
    def _drops_image_words(self) -> bool:
        """Whether the template leaves out an image's place that a question spells, as TinyLLaVA's does."""
        return _QUESTION * 2 in self._render(question=_QUESTION + IMAGE_WORD + _QUESTION)

    def _cleaned(self, question: str) -> str:
        return (question.replace(IMAGE_WORD, "") if self._drops_image_words else question).strip()

    def question_ids(self, question: str) -> list[int]:
        """The ids behind the image, up to where the answer begins. Space around the question is dropped."""
        question = self._cleaned(question)
        before, after = self._tail
        if self._spells_tokens(question):
            end = self.tokenizer.encode(after, add_special_tokens=False)
            return [*self._encode_tail(before), *self._plain(question), *end]
        return self._encode_tail(before + question + after)

    def dialogue_ids(self, history: Sequence[tuple[str, str]], question: str) -> list[int]:
        """As `question_ids`, behind earlier questions and their answers."""
        if not history:
            return self.question_ids(question)
        first = self._cleaned(history[0][0])
        later: list[str] = []
        for (_, answer), asked in zip(history, [*(asked for asked, _ in history[1:]), question], strict=True):
            later += [answer, self._cleaned(asked) if IMAGE_WORD in asked else asked]
        if not self._spells_tokens(first, *later):
            return self._encode_tail(self._tail[0] + first + self._dialogue(later))
        # Each text by itself, so that it stays text, between what the template writes.
        words = [f"{_ANSWER}{i}x" for i in range(len(later))]
        rest = self._dialogue(words)
        ids = [*self._encode_tail(self._tail[0]), *self._plain(first)]
        for word, text in zip(words, later, strict=True):
            between, _, rest = rest.partition(word)
            ids += [*self.tokenizer.encode(between, add_special_tokens=False), *self._plain(text)]
        return [*ids, *self.tokenizer.encode(rest, add_special_tokens=False)]

    def _dialogue(self, later: Sequence[str]) -> str:
        """What the template writes behind the first question, of answers and questions in turn."""
        messages = [self._turn(_QUESTION)]
        for place, text in enumerate(later):
            role = "user" if place % 2 else "assistant"
            messages.append({"role": role, "content": [{"type": "text", "text": text}]})
        return self._apply(messages).partition(_QUESTION)[2]

    @cached_property
    def _answer(self) -> tuple[str, str, int]:
        """The last word before an answer, what stands between, and the id that ends it."""
        full = self._render(_ANSWER)
        prompt, _, end = full.partition(_ANSWER)
        lead = prompt.removeprefix(self.whole) if prompt.startswith(self.whole) else ""
        first = self.tokenizer.encode(end.strip(), add_special_tokens=False)[:1] if _ANSWER in full else []
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
        eos = first[0] if first and first[0] in special else self.tokenizer.eos_token_id
        if eos is None:
            raise UserError(f"{self.name}: neither its chat template nor its tokenizer ends an answer with a token")
        words = self._tail[1].rstrip("\n").split()
        return (words[-1] if words else ""), lead, int(eos)

    @property
    def eos_token_id(self) -> int:
        """The id that ends an answer: the template's end of turn, else the tokenizer's end of text."""
        return self._answer[2]

    def answer_ids(self, answer: str) -> list[int]:
        """An answer's ids, as they follow the prompt, with the id that ends it."""
        word, lead, eos = self._answer
        context = self._plain(word)
        ids = self._plain(word + lead + answer)
        if lead and ids[: len(context)] == context:  # some tokenizers encode the start of a text differently
            return [*ids[len(context) :], eos]
        return [*self._plain(lead + answer), eos]


def _as_tensor(value: Any) -> torch.Tensor:
    """Some processors leave a list of one tensor an image."""
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value[0])[None]
