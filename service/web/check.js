// Whether the models are right: each is simulated through the line of the gather and compared with what was recorded.

import { call } from "./api.js";
import { drawLags, drawTraces } from "./draw.js";
import { by, element, fill } from "./elements.js";
import { readNpz } from "./npy.js";
import { form } from "./question.js";
import { sentenceOf } from "./state.js";
import { candidateName, share } from "./words.js";

const MOST = 16; // matches of a check
const ARRAYS = ["observed", "predicted", "lag_s", "window_s", "shot_x_m", "receiver_x_m", "dt_s", "answer"];
const HINT = by("check-state").textContent;

let from = null; // the answer that is checked
let running = null; // AbortController of the check on its way
let checked = null; // {check, arrays, which}

// Begins anew: what was found of another answer is not shown beside this one.
export function offerCheck(shown) {
  running?.abort();
  running = null;
  from = shown;
  checked = null;
  by("check-answer").hidden = by("check-cancel").hidden = by("check-progress").hidden = true;
  const one = shown.answer.results.length === 1;
  by("check-ask").disabled = !one;
  by("check-state").textContent = one ? HINT : "A check is of one gather: send a file that holds one.";
}

async function ask() {
  const own = new AbortController();
  running = own;
  by("check-ask").disabled = true;
  by("check-cancel").hidden = by("check-progress").hidden = false;
  by("check-state").textContent = "Simulating each model through the line.";
  try {
    const { question, given } = from;
    const fields = { ...given, include: "", top_k: Math.min(Number(given.top_k), MOST), format: "npz" };
    const body = await form(question, fields, own.signal);
    const content = await (await call("v1/check", { method: "POST", body, signal: own.signal })).arrayBuffer();
    if (own === running) {
      take(readNpz(content, ARRAYS));
    }
  } catch (error) {
    if (own === running) {
      by("check-state").textContent = sentenceOf(error);
    }
  } finally {
    if (own === running) {
      running = null;
      by("check-ask").disabled = false;
      by("check-cancel").hidden = by("check-progress").hidden = true;
    }
  }
}

function take(arrays) {
  const { check, result } = JSON.parse(new TextDecoder().decode(arrays.answer.values));
  const best = check.candidates.findIndex(({ name }) => name === check.best);
  checked = { check, arrays, which: best };
  const usable = check.candidates.filter(({ verdict }) => verdict.usable).length;
  const surface = check.free_surface ? "with a free surface" : "without a free surface";
  const first = check.reordered ? ` The match that explains the record is another than the first: ${result.matches[0].model_id}.` : "";
  by("check-state").textContent =
    `${usable} of ${check.candidates.length} models may start an inversion; ${candidateName(check.candidates[best])} explains ` +
    `most. Simulated ${surface}; the lowest usable frequency is ${Number(check.lowest_hz.toPrecision(3))} Hz.${first}`;
  by("check-answer").hidden = false;
  const { values } = arrays.shot_x_m;
  fill(by("check-shot"), [...values].map((x, i) => [i, `${i + 1} of ${values.length}, at ${Math.round(x)} m`]));
  by("check-shot").value = String(Math.floor(values.length / 2));
  by("checked").tBodies[0].replaceChildren(...check.candidates.map(row));
  paint();
}

function row(candidate, i) {
  const { measures, verdict, name, model_id: modelId } = candidate;
  const best = name === checked.check.best;
  const show = element("button", { type: "button", text: "Show", onclick: () => choose(i) });
  show.setAttribute("aria-label", `Show what ${candidateName(candidate)} predicts`);
  show.setAttribute("aria-pressed", String(i === checked.which));
  const figures = [measures.residual.toFixed(3), share(measures.in_time), measures.phase_rad.toFixed(2), measures.cosine.toFixed(3)];
  const said = element("td", { className: verdict.usable ? "usable" : "unusable" },
    element("b", { text: verdict.usable ? "✓ Usable. " : "✗ Not usable. " }), verdict.detail);
  return element("tr", { className: best ? "best" : "" },
    element("th", { scope: "row", title: modelId ?? "" }, candidateName(candidate), ...(best ? [" ", element("b", { text: "(best)" })] : [])),
    ...figures.map((text) => element("td", { className: "number", text })),
    said, element("td", {}, show));
}

function choose(i) {
  checked.which = i;
  by("checked").querySelectorAll("tbody button").forEach((button, at) => {
    button.setAttribute("aria-pressed", String(at === i));
  });
  paint();
}

function paint() {
  if (!checked || by("check-answer").hidden) {
    return;
  }
  const { check, arrays, which } = checked;
  const candidate = check.candidates[which];
  const name = candidateName(candidate);
  const [shots, samples, receivers] = arrays.observed.shape;
  const receiverX = arrays.receiver_x_m.values;
  const line = { shots, samples, receivers, dtS: arrays.dt_s.values[0], stepM: receiverX[1] - receiverX[0], shotXM: arrays.shot_x_m.values };
  const size = arrays.observed.values.length;
  const observed = { ...line, values: arrays.observed.values };
  const predicted = { ...line, values: arrays.predicted.values.subarray(which * size, (which + 1) * size) };
  const difference = { ...line, values: observed.values.map((value, i) => value - predicted.values[i]) };
  const shot = Number(by("check-shot").value);
  const place = `shot ${shot + 1} of ${shots}`;
  by("check-title-of").textContent = `What ${name} predicts`;
  for (const [id, traces, said] of [
    ["check-observed", observed, "Recorded"], ["check-predicted", predicted, `Predicted by ${name}`], ["check-difference", difference, "Difference"],
  ]) {
    drawTraces(by(id), { traces, shot, axis: "x", gain: 0, like: observed });
    by(id).setAttribute("aria-label", `${said}, ${place}.`);
  }
  const [, , , windows] = arrays.lag_s.shape;
  const at = (which * shots + shot) * receivers * windows;
  const values = new Float32Array(receivers * windows);
  for (let r = 0; r < receivers; r++) {
    for (let w = 0; w < windows; w++) {
      values[w * receivers + r] = arrays.lag_s.values[at + r * windows + w];
    }
  }
  const centres = arrays.window_s.values;
  const half = (windows > 1 ? centres[1] - centres[0] : 2 * centres[0]) / 2;
  const reach = 0.5 / check.lowest_hz;
  const scale = { low: -reach, high: reach };
  const map = { rows: windows, columns: receivers, values };
  drawLags(by("check-lag"), { map, fromS: centres[0] - half, toS: centres[windows - 1] + half, traces: line, scale });
  const followed = share(candidate.shots[shot].in_time);
  by("check-lag").setAttribute("aria-label", `Lag of ${name}, ${place}: ${followed} of the windows within half a period.`);
  const ms = Math.round(1000 * reach);
  by("check-lag-note").textContent = `Lag: blue where the prediction is late, brown where it is early, full at half a period (${ms} ms); grey where it follows nothing.`;
}

by("check-ask").addEventListener("click", ask);
by("check-cancel").addEventListener("click", () => running?.abort());
by("check-shot").addEventListener("change", paint);
new ResizeObserver(paint).observe(by("check-answer"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
