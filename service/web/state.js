// What the page is doing: the box under the question, with refusals and what to do about them.

import { address, Refused } from "./api.js";
import { by, element } from "./elements.js";
import { advice } from "./words.js";

export function say(kind, ...lines) {
  by("state").className = `state ${kind}`;
  by("state-text").replaceChildren(...lines);
  by("help").replaceChildren();
  by("help").hidden = true;
}

function offerAgain(again) {
  if (again) {
    by("help").replaceChildren(element("button", { type: "button", text: "Try again", onclick: again }));
    by("help").hidden = false;
  }
}

export function busy(on) {
  by("busy").hidden = !on;
  by("answer").setAttribute("aria-busy", String(on));
}

// An error in one sentence, for a part of the page that has a line of its own.
export function sentenceOf(error) {
  if (error.name === "AbortError") {
    return "Cancelled.";
  }
  return error instanceof TypeError ? `The server cannot be reached from here (${error.message}).` : error.message;
}

// `before` is what is still shown, `again` what asks once more.
export function fail(error, { before = "", again = null } = {}) {
  if (error.name === "AbortError") {
    say("", element("p", { text: `Cancelled. Nothing was changed.${before}` }));
    return;
  }
  if (!(error instanceof Refused)) {
    const words = error instanceof TypeError ? "The server cannot be reached from here." : error.message;
    say("refused", element("p", {}, element("b", { className: "mark", text: "✗ Failed. " }), words),
      element("p", { className: "muted", text: `Is it running at ${address("").href}? (${error.message})` }));
    offerAgain(again);
    return;
  }
  const { code, detail, status, request_id: requestId } = error.problem;
  say("refused",
    element("p", {}, element("b", { className: "mark", text: "✗ Refused: " }), element("code", { text: code }), ` (${status})`),
    element("p", { text: detail }), element("p", { text: advice(code) }),
    element("p", { className: "muted", text: requestId ? `Request ${requestId}` : "" }));
  if (status === 401) {
    by("key-field").hidden = false;
    by("key").focus();
  } else if (code === "invalid_survey") {
    by("options").open = true;
  }
  if (status !== 401) {
    offerAgain(again);
  }
}
