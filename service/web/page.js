// The page: asks and shows the answers.

import { clear, show } from "./answer.js";
import { call, useKey } from "./api.js";
import { by, element, fill } from "./elements.js";
import { readNpy } from "./npy.js";
import { fields, form } from "./question.js";
import { busy, fail, say } from "./state.js";

let asked = null; // {file, name, sample}: what "ask again" sends
let running = null; // AbortController of the request on its way
let distribution = null; // with the ``query`` that it was asked with
let shown = null; // the answer that is shown

// what accompanies an answer and is no part of it: where it fails, the answer is shown without it
async function beside(fetched) {
  try {
    return await fetched();
  } catch {
    return null;
  }
}

async function ask(question) {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  asked = question;
  by("again").disabled = false;
  const began = performance.now();
  say("", element("p", { text: `Asking about ${question.name} …` }));
  busy(true);
  const tick = () => {
    by("clock").textContent = `${((performance.now() - began) / 1000).toFixed(1)} s`;
  };
  tick();
  const clock = setInterval(tick, 100);
  const given = fields();
  try {
    const { signal } = mine;
    const body = await form(question, given, signal);
    const answer = await (await call("v1/retrieve", { method: "POST", body, signal })).json();
    const ms = performance.now() - began;
    const { scale } = answer.results[0];
    const query = scaleQuery(scale);
    const same = distribution?.generation === answer.gallery.generation && distribution.query === query;
    const counted = async () => ({ ...(await (await call(`v1/gallery/distribution${query}`, { signal })).json()), query });
    distribution = same ? distribution : await beside(counted);
    const known = question.sample && query === ""; // of its own size only
    let ground = null;
    if (known) {
      const file = `web/samples/${question.sample.ground}`;
      ground = await beside(async () => readNpy(await (await call(file, { signal })).arrayBuffer()));
    }
    if (running !== mine) {
      return;
    }
    const physics = known ? question.sample.physics ?? null : null;
    shown = { answer, question, given, ground, physics, distribution, query, models: new Map() };
    show(shown, ms);
  } catch (error) {
    if (running === mine) {
      if (error.name !== "AbortError") {
        shown = null;
        clear();
      }
      const before = shown ? ` What is shown is still the answer to ${shown.question.name}.` : "";
      fail(error, { before, again: () => ask(question) });
    }
  } finally {
    clearInterval(clock);
    if (running === mine) {
      running = null;
      busy(false);
    }
  }
}

// Of addresses of models, so that they are in true units.
function scaleQuery(scale) {
  if (!scale || (scale.s === 1 && scale.k === 1)) {
    return "";
  }
  return `?scale=${scale.s}${scale.k === 1 ? "" : `,${scale.k}`}`;
}

async function offerSamples() {
  const samples = await (await call("web/samples/samples.json")).json();
  by("samples").replaceChildren(...samples.map((sample) => {
    const button = element("button", { type: "button", text: sample.title, title: sample.about });
    button.addEventListener("click", () => ask({ name: sample.file, sample }));
    return button;
  }));
}

async function offerFamilies() {
  const { families } = await (await call("v1/gallery")).json();
  const options = Object.entries(families).map(([name, count]) => [name, `${name} (${count})`]);
  const select = by("ask").elements.namedItem("family");
  const chosen = select.value;
  fill(select, [["", "all"], ...options]);
  select.value = chosen;
}

async function start() {
  try {
    await offerSamples();
    await offerFamilies();
  } catch (error) {
    fail(error);
  }
}

function takeFile(file) {
  if (file) {
    ask({ file, name: file.name });
  }
}

by("file").addEventListener("change", () => {
  takeFile(by("file").files[0]);
  by("file").value = ""; // so that the same file, changed, may be chosen again
});
const drop = by("drop");
for (const name of ["dragover", "drop"]) {
  window.addEventListener(name, (event) => event.preventDefault()); // beside the box, the browser would leave the page
}
drop.addEventListener("dragover", () => drop.classList.add("over"));
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  drop.classList.remove("over");
  takeFile(event.dataTransfer.files[0]);
});
by("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (asked) {
    ask(asked);
  }
});
by("cancel").addEventListener("click", () => running?.abort());
by("use-key").addEventListener("click", () => {
  useKey(by("key").value);
  start();
  if (asked) {
    ask(asked);
  } else {
    say("", element("p", { text: "The key is used from now on. Choose a gather, or take a sample." }));
  }
});
by("key").addEventListener("keydown", (event) => {
  if (event.key === "Enter") {
    event.preventDefault();
    by("use-key").click();
  }
});
start();
