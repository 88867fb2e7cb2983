// Requests to the server. Errors carry the server's own sentence; a request that was called off throws CancelledError.

export class CancelledError extends Error {}

class ServerError extends Error {
  constructor(status, message, retryAfter = 1) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds
  }
}

let key = sessionStorage.getItem("key") ?? "";

export function setKey(value) {
  key = value;
  sessionStorage.setItem("key", value); // for this tab, until it is closed
}

async function send(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { headers, signal };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (signal?.aborted) throw new CancelledError();
    throw new ServerError(0, "The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  const refusal = await response.json().catch(() => null);
  const message = refusal?.error?.message ?? `The server answered ${response.status}.`;
  throw new ServerError(response.status, message, Number(response.headers.get("Retry-After") ?? 1));
}

export async function getModels() {
  const list = await (await send("/v1/models")).json();
  return list.data.map((model) => model.id);
}

export async function postJson(path, body, signal) {
  const response = await send(path, body, signal);
  try {
    return await response.json();
  } catch (error) {
    if (signal?.aborted) throw new CancelledError();
    throw error;
  }
}

// The events of a streamed answer, one object each.
export async function* streamEvents(path, body, signal) {
  const response = await send(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        const event = JSON.parse(line.slice(6));
        if (event.error) throw new ServerError(200, event.error.message);
        yield event;
      }
    }
  } catch (error) {
    if (signal?.aborted) throw new CancelledError();
    throw error;
  }
}

// The pieces of the answer to a question.
export async function* ask(url, question, model, signal) {
  for await (const event of streamEvents("/v1/query", { image_url: url, question, model, stream: true }, signal)) {
    if (event.chunk) yield event.chunk;
  }
}
