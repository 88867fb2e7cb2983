"""Prompts of a model that has a chat template: what comes before the image's end, the question, and the answer's end.

    template = ChatTemplate(processor)
    template.before                      # text of a user's turn with an image, the question left open
    template.question_ids("What is it?")   # ids behind the image, to the point where the answer begins
    template.answer_ids("A ship.")

Ids are those that the processor itself makes of the whole conversation. A question cannot forge a marker: special
tokens that it spells out stay text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from PIL import Image
from transformers import PreTrainedTokenizerBase

from vlm_detect.errors import UserError

IMAGE_WORD = "<image>"  # an image's place, as people write it in the text of a conversation
_QUESTION, _ANSWER = "Qzxq", "Azxa"  # stand for a question and an answer while a template is taken apart


class ChatTemplate:
    """The parts of a processor's chat template.

    Raises UserError for a processor without a template, or with one that leaves the question out.
    """

    def __init__(self, processor: Any, image_token_id: int, name: str) -> None:
        self.processor, self.image_token_id, self.name = processor, image_token_id, name
        if not getattr(processor, "chat_template", None):
            raise UserError(
                f"{name}: its processor has no chat template, so its prompt format is unknown; put the model's "
                "chat_template.jinja into a copy of its folder"
            )
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
        return self.processor.apply_chat_template(messages, add_generation_prompt=answer is None, tokenize=False)

    def inputs(self, image: Image.Image) -> dict[str, Any]:
        """The processor's tensors for one image and the open question, a batch of one."""
        bos = self.tokenizer.bos_token  # templates that write it themselves are tokenized without another
        options = {"add_special_tokens": False} if bos and self.whole.startswith(bos) else {}
        return dict(self.processor(images=[image], text=[self.whole], return_tensors="pt", **options))

    def prefix_length(self, ids: list[int]) -> int:
        """How many ids of a prompt end with its image."""
        return len(ids) - ids[::-1].index(self.image_token_id)

    @cached_property
    def _tail(self) -> tuple[str, str]:
        """The text between image and question, and between question and answer, as the processor expands it."""
        ids = self.inputs(Image.new("RGB", (32, 32)))["input_ids"][0].tolist()
        tail = ids[self.prefix_length(ids) :]
        image = str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        text = self.tokenizer.decode([self.image_token_id, *tail], **options).removeprefix(image)
        before, _, after = text.partition(_QUESTION)
        if self._encode_tail(before + _QUESTION + after) != tail:
            raise UserError(f"{self.name}: its tokenizer does not give the template's text back ({text!r})")
        return before, after

    def _encode_tail(self, text: str) -> list[int]:
        image = str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))
        ids = self.tokenizer.encode(image + text, add_special_tokens=False)
        return ids[1:]

    def _plain(self, text: str) -> list[int]:
        """The ids of a text in which nothing is a special token, whatever it spells."""
        ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if self.image_token_id not in ids:
            return ids
        # A tokenizer to which its image token is a word like others: cut in two it is none.
        image = str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))
        pieces = text.replace(image, f"{image[0]}\0{image[1:]}").split("\0")
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
        whole = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return str(whole).partition(_QUESTION)[2]

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
