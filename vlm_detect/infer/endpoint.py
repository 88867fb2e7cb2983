"""A model behind an OpenAI-compatible endpoint (`/v1/chat/completions`), with the engine's interface for benchmarks.

    endpoint = Endpoint("http://localhost:8000/v1", "qwen2.5-vl", api_key=os.environ["OPENAI_API_KEY"])
    endpoint.generate([photo], [["Is this image AI-generated?"]])      # free answers, greedy where supported
    endpoint.score([photo], [[Ask("Is this ...?", ("Yes.", "No."))]])  # where the endpoint gives log-probabilities
    endpoint.answer([Prompt((photo, twin), "How do they differ?", schema={...}, temperature=0.7)], 512)

Images are sent as PNG data URLs, without loss. Rate limits, timeouts and server errors are retried with exponential
backoff; a request that the server rejects permanently (content filters) gives an unparsed answer with the reason.

An endpoint gives no probability of a complete answer: `score` uses the first token, summed over the tokens that begin
exactly one candidate; tokens that are not listed get the lowest listed probability. This suffices for letters and for
yes or no, but says little about candidates that begin alike.
"""

from __future__ import annotations

import base64
import io
import math
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from vlm_detect.errors import UserError
from vlm_detect.infer.asks import Ask, CandidateScore
from vlm_detect.infer.endpoint_client import EndpointClient, Refused, TimedOut
from vlm_detect.infer.prepared import image_key

_TOP = 20  # top_logprobs of the first token; the protocol's maximum


@dataclass(frozen=True)
class Reply:
    """The text, and the first token's alternatives as (token, log-probability), if given."""

    text: str
    top: tuple[tuple[str, float], ...] = ()
    failure: Literal["", "refused", "timed_out"] = ""  # why this one request failed


@dataclass(frozen=True)
class Prompt:
    """One request: images, in order, followed by a text.

    `schema` is a JSON schema for the answer; for an endpoint without schemas, only the text requests it. `temperature`
    and `seed` are for sampled answers; the endpoint may ignore them. `logprobs`: the reply has `top`, if supported.
    """

    images: tuple[Image.Image, ...]
    text: str
    schema: Mapping[str, Any] | None = None
    temperature: float | None = None
    seed: int | None = None
    logprobs: bool = False


class Endpoint:
    """Queries one model of an endpoint, with up to `parallel` concurrent requests.

    `options` are the protocol options that the endpoint supports: pass the `options` of an earlier instance, or omit it
    and the first request detects them.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        parallel: int = 8,
        retries: int = 6,
        timeout_s: float = 120.0,
        max_new_tokens: int = 16,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._client = EndpointClient(
            url, model, api_key=api_key, retries=retries, timeout_s=timeout_s, flag="--endpoint"
        )
        self.url, self.model = url, model
        self.parallel, self.max_new_tokens = parallel, max_new_tokens
        self.options = options if options is not None else self._find_options()
        self._said: dict[tuple[bytes, str, int], str] = {}
        self._forms = deque(
            ("json_schema", "json_object", "")
        )  # ways to request a schema, the best supported one first

    @property
    def gives_logprobs(self) -> bool:
        return "logprobs" in self.options

    def generate(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]], max_new_tokens: int = 16
    ) -> list[list[str]]:
        """A free answer to each question of each image; answers just seen by `score` are reused."""
        keys = [image_key(image) for image in images]
        wanted = [(i, question) for i, some in enumerate(questions) for question in some]
        known = {entry: self._said.get((keys[entry[0]], entry[1], max_new_tokens)) for entry in wanted}
        missing = [entry for entry in wanted if known[entry] is None]
        replies = self._all(images, missing, max_new_tokens)
        known |= {entry: reply.text for entry, reply in zip(missing, replies, strict=True)}
        return [[known[i, question] or "" for question in some] for i, some in enumerate(questions)]

    def score(self, images: Sequence[Image.Image], asks: Sequence[Sequence[Ask]]) -> list[list[list[CandidateScore]]]:
        """Log-probabilities of the candidates' first tokens: per image, per ask, one per candidate."""
        wanted = [(i, ask.question) for i, some in enumerate(asks) for ask in some]
        replies = dict(zip(wanted, self._all(images, wanted, self.max_new_tokens), strict=True))
        keys = [image_key(image) for image in images]
        self._said = {(keys[i], question, self.max_new_tokens): r.text for (i, question), r in replies.items()}
        return [
            [
                [CandidateScore(value, 1) for value in first_token_scores(replies[i, ask.question].top, ask.candidates)]
                for ask in some
            ]
            for i, some in enumerate(asks)
        ]

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Reply]:
        """A reply to each prompt; a failure of a single prompt is recorded in its reply.

        UserError where the endpoint answers none of them, or limits the rate for too long.
        """
        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                replies = list(pool.map(lambda prompt: self._answer(prompt, max_new_tokens), prompts))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        if replies and all(reply.failure == "timed_out" for reply in replies):
            raise TimedOut(replies[0].text)
        return replies

    def log_odds(self, questions: Sequence[tuple[Image.Image, str]], candidates: tuple[str, str]) -> list[float | None]:
        """Log-odds of the first candidate against the second, in nats, by the answers' first tokens.

        None where a single request fails, or its answer begins with neither.
        """
        prompts = [Prompt((image,), question, logprobs=True) for image, question in questions]
        replies = self.answer(prompts, self.max_new_tokens)
        return [first_token_odds(reply.top, candidates) for reply in replies]

    def _answer(self, prompt: Prompt, max_new_tokens: int) -> Reply:
        urls = [data_url(image) for image in prompt.images]
        options = {name: value for name, value in self.options.items() if prompt.logprobs or "logprobs" not in name}
        options[self._length_option] = max_new_tokens
        if prompt.temperature is not None and "temperature" in options:
            options["temperature"] = prompt.temperature
        if prompt.seed is not None:
            options["seed"] = prompt.seed
        while True:
            form = self._forms[0] if prompt.schema else ""
            try:
                return self._request(urls, prompt.text, {**options, **_json_form(form, prompt.schema)})
            except TimedOut as error:
                return Reply(str(error), failure="timed_out")
            except Refused as refused:
                message = str(refused)
                if form and any(word in message for word in ("response_format", "json", "schema", "guided")):
                    if self._forms[0] == form:  # another request may have detected it already
                        self._forms.popleft()
                elif "seed" in options and "seed" in message:
                    del options["seed"]
                else:
                    return Reply(f"(refused: {message})", failure="refused")

    def _all(self, images: Sequence[Image.Image], wanted: Sequence[tuple[int, str]], max_tokens: int) -> list[Reply]:
        urls = {i: data_url(images[i]) for i in {i for i, _ in wanted}}
        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                return list(pool.map(lambda entry: self._ask(urls[entry[0]], entry[1], max_tokens), wanted))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _ask(self, url: str, question: str, max_tokens: int) -> Reply:
        try:
            return self._request([url], question, {**self.options, self._length_option: max_tokens})
        except Refused as refused:
            return Reply(f"(refused: {refused})", failure="refused")

    @property
    def _length_option(self) -> str:
        return "max_completion_tokens" if "max_completion_tokens" in self.options else "max_tokens"

    def _request(self, urls: Sequence[str], question: str, options: dict[str, Any]) -> Reply:
        """One request. Raises Refused if the server rejects this one, and UserError for other failures."""
        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        content = [*pictures, {"type": "text", "text": question}]
        messages: Any = [{"role": "user", "content": content}]
        completions = self._client.openai.chat.completions
        with self._client.explained():
            choice = completions.create(model=self.model, messages=messages, **options).choices[0]
        given = choice.logprobs.content if choice.logprobs else None
        top = tuple((entry.token, entry.logprob) for entry in given[0].top_logprobs) if given else ()
        return Reply(choice.message.content or "", top)

    def _find_options(self) -> dict[str, Any]:
        """The options that the endpoint supports: options named in its rejection of a small request are renamed or
        dropped."""
        options: dict[str, Any] = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": _TOP}
        picture = data_url(Image.new("RGB", (64, 64), "gray"))
        while True:
            try:
                reply = self._request([picture], "Is this image gray?", options)
            except Refused as refused:
                found = without_refused(options, str(refused))
                if found is None:
                    raise UserError(
                        f"{self.url} refuses a request with an image: {refused}; is it a vision model?"
                    ) from refused
                options = found
                continue
            if not reply.top:  # accepted and ignored
                options = {name: value for name, value in options.items() if "logprobs" not in name}
            return options


def _json_form(form: str, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """The option that requests JSON: by its schema, as any object, or none."""
    if form == "json_schema":
        named = {"name": "answer", "schema": schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    return {"response_format": {"type": "json_object"}} if form else {}


def without_refused(options: dict[str, Any], message: str) -> dict[str, Any] | None:
    """`options` without the one named in `message`; None where it names none."""
    if "max_completion_tokens" in message and "max_tokens" in options:
        rest = {name: value for name, value in options.items() if name != "max_tokens"}
        return {"max_completion_tokens": max(options["max_tokens"], 16), **rest}
    if "temperature" in message and "temperature" in options:
        return {name: value for name, value in options.items() if name != "temperature"}
    if "top_logprobs" in message and options.get("top_logprobs", 0) > 5:
        return {**options, "top_logprobs": 5}
    if "logprobs" in message and "logprobs" in options:
        return {name: value for name, value in options.items() if "logprobs" not in name}
    return None


def first_token_scores(top: Sequence[tuple[str, float]], candidates: Sequence[str]) -> list[float]:
    """The log-probability that the first token begins exactly each candidate; all equal where none is known."""
    begun = _begun(top, candidates)
    if not any(begun):
        return [-math.log(len(candidates))] * len(candidates)
    least = min(logprob for _, logprob in top)
    return [math.log(sum(map(math.exp, values))) if values else least for values in begun]


def first_token_odds(top: Sequence[tuple[str, float]], candidates: tuple[str, str]) -> float | None:
    """Log-odds of the first candidate against the second; None where no listed token begins exactly one of them."""
    if not any(_begun(top, candidates)):
        return None
    first, second = first_token_scores(top, candidates)
    return first - second


def _begun(top: Sequence[tuple[str, float]], candidates: Sequence[str]) -> list[list[float]]:
    """For each candidate the log-probabilities of the tokens that begin it and no other."""
    plain = [candidate.strip().lower() for candidate in candidates]
    begun: list[list[float]] = [[] for _ in plain]
    for token, logprob in top:
        said = token.strip().lower()
        starts = [i for i, candidate in enumerate(plain) if said and candidate.startswith(said)]
        if len(starts) == 1:
            begun[starts[0]].append(logprob)
    return begun


def data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
