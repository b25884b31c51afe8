// Calls to the server that sent the page, with the API key if one was entered. The key is kept here and nowhere else.

let key = "";

export function useKey(text) {
  key = text.trim();
}

export function keyGiven() {
  return key !== "";
}

// An answer that is a problem document; `problem` has its code, detail, status and request_id.
export class Refused extends Error {
  constructor(problem) {
    super(problem.detail);
    this.problem = problem;
  }
}

// The server's address for a path that it gave or that is documented, whatever prefix a proxy puts before it.
export function address(path) {
  return new URL(path.replace(/^\//, ""), document.baseURI);
}

export async function call(path, { method = "GET", body = undefined, signal = undefined } = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch(address(path), { method, body, headers, signal, credentials: "same-origin" });
  if (response.ok) {
    return response;
  }
  const text = await response.text();
  let problem = null;
  try {
    problem = JSON.parse(text);
  } catch {
    problem = null;
  }
  if (!problem?.code) {
    const detail = `Something between this page and the server answered ${response.status} without saying why.`;
    problem = { code: "http_error", status: response.status, detail };
  }
  throw new Refused(problem);
}

// Calls `line` with each object of an answer that is lines of JSON; resolves to its text.
export async function readLines(response, line) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const pieces = [];
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    const piece = decoder.decode(value ?? new Uint8Array(), { stream: !done });
    pieces.push(piece);
    const ends = (rest + piece).split("\n");
    rest = ends.pop();
    for (const each of ends) {
      line(JSON.parse(each));
    }
    if (done) {
      return pieces.join("");
    }
  }
}
