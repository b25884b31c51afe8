// A long line: its file goes to POST /v1/section, whose lines of JSON say how far it is, and have the section at the end.

import { call, readLines, Refused } from "./api.js";
import { drawBar, drawModel } from "./draw.js";
import { by, save } from "./elements.js";
import { number } from "./words.js";

let section = null; // of the last answer, its arrays unpacked
let text = ""; // the last answer as it came
let running = null; // what ends the request that is under way

function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Float32Array(bytes.buffer); // little-endian, as every browser's machine is
}

function say(sentence) {
  by("line-state").textContent = sentence;
}

function begin() {
  running = new AbortController();
  by("line-answer").hidden = true;
  by("line-cancel").hidden = by("line-progress").hidden = false;
  by("line-progress").removeAttribute("value");
  say("Reading the line.");
  return running;
}

function end() {
  running = null;
  by("line-cancel").hidden = by("line-progress").hidden = true;
}

function take(body, windows) {
  const { depth_cells: rows, columns } = body;
  const map = (values) => ({ rows, columns, values });
  const velocity = unpack(body.velocity);
  section = { body, maps: { velocity: map(velocity), disagreement: map(unpack(body.disagreement)) } };
  if (body.low && body.high) {
    const low = unpack(body.low);
    section.maps.interval = map(unpack(body.high).map((high, at) => (high - low[at]) / 2));
  }
  const choice = by("line-which");
  choice.querySelector("option[value=interval]").disabled = !section.maps.interval;
  choice.value = "velocity";
  const unlike = windows.filter((window) => window.likely === false).length;
  const read = windows.filter((window) => window.lack === null).length;
  say(
    `${read} of ${windows.length} windows have enough traces; ${unlike} of them are unlike training. ` +
      `${columns} x ${rows} cells of ${number(body.cell_m, "m")}.`,
  );
  by("line-answer").hidden = false;
  draw();
}

function draw() {
  if (!section || by("line-answer").hidden) {
    return;
  }
  const which = by("line-which").value;
  const map = section.maps[which];
  const known = map.values.filter((value) => !Number.isNaN(value));
  const range = known.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  const scale = known.length ? { low: range[0], high: Math.max(range[1], range[0] + 1) } : { low: 0, high: 1 };
  const label = { velocity: "velocity (m/s)", interval: "half of the 90 % interval (m/s)" }[which] ?? "disagreement (m/s)";
  drawBar(by("line-bar"), { scale, label });
  const { cell_m: cellM, x0_m: x0M } = section.body;
  drawModel(by("line-picture"), { map, cellM, scale, x0M });
}

async function ask(event) {
  event.preventDefault();
  running?.abort();
  const form = new FormData();
  for (const name of ["scale", "step_m"]) {
    const value = by("line-form").elements[name].value.trim();
    if (value) {
      form.append(name, value);
    }
  }
  form.append("file", by("line-file").files[0]);
  const own = begin();
  const windows = [];
  let found = null;
  try {
    const response = await call("/v1/section", { method: "POST", body: form, signal: own.signal });
    text = await readLines(response, (line) => {
      if (line.error) {
        throw new Refused(line.error);
      }
      if (line.section) {
        found = line.section;
        return;
      }
      windows.push(...line.read);
      by("line-progress").max = line.windows;
      by("line-progress").value = line.done;
      say(`${line.done} of ${line.windows} windows read.`);
    });
    if (!found) {
      throw new Error("The answer ended before the section. Ask again.");
    }
    take(found, windows);
  } catch (error) {
    if (own === running) {
      say(own.signal.aborted ? "Cancelled." : error.message);
    }
  } finally {
    if (own === running) {
      end();
    }
  }
}

by("line-form").addEventListener("submit", ask);
by("line-cancel").addEventListener("click", () => running?.abort());
by("line-which").addEventListener("change", draw);
by("line-save").addEventListener("click", () => {
  save(new Blob([text], { type: "application/x-ndjson" }), "section.ndjson");
});
by("line").addEventListener("toggle", draw);
window.addEventListener("resize", draw);
