"""A question and its answer as a chat template, for tools that know a model through its processor's alone.

    processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Real?"}]}])

The text that it renders has the very ids of `query_ids` and `answer_ids`. The question stands in it as it is: one that
spells a part of the template is taken for that part, unlike in `query_ids`.
"""

from __future__ import annotations

import json
import re

from vlm_detect.models.moondream.prompts import MoondreamPrompts

_TEMPLATE = """\
{%- for message in messages -%}
  {%- set turn = namespace(image=false, text='') -%}
  {%- if message['content'] is string -%}
    {%- set turn.text = message['content'] -%}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'image' -%}{%- set turn.image = true -%}{%- endif -%}
      {%- if part['type'] == 'text' -%}{%- set turn.text = turn.text + part['text'] -%}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- if message['role'] == 'assistant' -%}
    {{- turn.text + @END@ -}}
  {%- elif loop.first and message['role'] == 'user' -%}
    {{- @BEGIN@ + (@IMAGE@ if turn.image else '') + @PREFIX@ + turn.text + @SUFFIX@ -}}
  {%- else -%}
    {{- raise_exception('moondream2 answers single questions: one user turn, then one of the assistant') -}}
  {%- endif -%}
{%- endfor -%}
"""


class ChatWords:
    """What the parts of a prompt are spelled as in a rendered text, and the ids that each stands for."""

    def __init__(self, prompts: MoondreamPrompts) -> None:
        config, tokenizer = prompts.config, prompts.tokenizer
        assert tokenizer is not None

        def spell(ids: list[int]) -> str:
            return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

        query = config.templates["query"]
        suffix = query["suffix"] * config.query_suffix_repeats
        self.prompts = prompts
        self.begin, self.end = spell([config.bos_token_id]), spell([config.eos_token_id])
        self.image = spell([config.image_token_id]) or "<image>"  # of the first releases no token of the vocabulary
        self.prefix, self.suffix = spell(query["prefix"]), spell(suffix)
        self._ids = {
            self.begin: [config.bos_token_id],
            self.end: [config.eos_token_id],
            self.image: [config.image_token_id] * config.vision_config.num_image_tokens,
            self.prefix: list(query["prefix"]),
            self.suffix: suffix,
        }
        self._split = re.compile("|".join(f"({re.escape(word)})" for word in sorted(self._ids, key=len, reverse=True)))

    def template(self) -> str:
        """The chat template, in Jinja."""
        words = {
            "@BEGIN@": self.begin,
            "@IMAGE@": self.image,
            "@PREFIX@": self.prefix + self.prompts.config.question_prefix,
            "@SUFFIX@": self.suffix,
            "@END@": self.end,
        }
        template = _TEMPLATE
        for word, text in words.items():
            template = template.replace(word, json.dumps(text))
        return template

    def ids(self, rendered: str) -> list[int]:
        """The ids of a rendered text: those of its words, and between them plain text."""
        pieces = [piece for piece in self._split.split(rendered) if piece]
        return [token for piece in pieces for token in self._ids.get(piece) or self.prompts.encode(piece)]
