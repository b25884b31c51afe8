// The answer: how the file was read, the gather, the verdicts and the physics. What is shown is in `shown`; every
// picture is drawn from it.

import { offerCheck } from "./check.js";
import { drawTraces, physicsPlot } from "./draw.js";
import { by, element, fill, save } from "./elements.js";
import { offerRefinement } from "./jobs.js";
import { paintModels, showModels } from "./models.js";
import { readTraces } from "./npy.js";
import { curl } from "./question.js";
import { say } from "./state.js";
import { number, plainName, presence, verdict } from "./words.js";

let shown = null; // {answer, question, given, ground, physics, distribution, query, models, index, traces, panels}

// An earlier answer is not shown beside the refusal of a later request.
export function clear() {
  shown = null;
  by("answer").hidden = true;
}

export function show(answered, ms) {
  shown = answered;
  const { answer, question, given } = shown;
  by("answer").hidden = false;
  by("key-field").hidden = true;
  by("answer-title").textContent = `Answer: ${question.name}`;
  by("which").hidden = answer.results.length < 2;
  fill(by("gather-choice"), answer.results.map((_, i) => [i, `${i + 1} of ${answer.results.length}`]));
  showReading();
  by("curl").textContent = curl(question, given);
  showGather(0);
  offerCheck(shown);
  offerRefinement(shown);
  const first = answer.results[0].matches[0];
  const best = first ? `best match ${first.model_id}, similarity ${first.similarity.toFixed(3)}` : "no match";
  const server = answer.timings_ms.total ? `, of which the server needed ${Math.round(answer.timings_ms.total)} ms` : "";
  say("done", element("p", { text: `Answered in ${Math.round(ms)} ms${server}: ${best}.` }));
  by("answer-title").focus({ preventScroll: true });
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  by("state").scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
}

function showGather(index) {
  const result = shown.answer.results[index];
  shown.index = index;
  shown.traces = result.traces ? readTraces(result.traces) : null;
  showVerdict(result);
  showWarnings(result);
  const middle = shown.traces ? Math.floor(shown.traces.shots / 2) : 0;
  const shots = shown.traces?.shotXM ?? [];
  fill(by("shot"), shots.map((x, i) => [i, `${i + 1} of ${shots.length}, at ${Math.round(x)} m`]));
  by("shot").value = String(middle);
  paintTraces();
  showModels(shown, result);
  showPhysics(result);
}

function showVerdict(result) {
  const { kind, mark, words, detail } = verdict(result.in_distribution);
  const lines = [
    element("p", {}, element("span", { className: "mark", text: `${mark} ` }), words),
    element("p", { className: "muted", text: detail }),
  ];
  const held = presence(result);
  by("presence").hidden = held === null;
  if (held) {
    by("presence").className = `verdict ${held.kind}`;
    by("presence").replaceChildren(
      element("p", {}, element("span", { className: "mark", text: `${held.mark} ` }), held.words),
      ...(held.detail ? [element("p", { className: "muted", text: held.detail })] : []),
    );
  } else if (result.in_distribution.similarity !== null) {
    const similarity = result.in_distribution.similarity.toFixed(3);
    const said = `That is about the gather, not about the gallery, whose best match has a similarity of ${similarity}.`;
    lines.push(element("p", { className: "muted", text: said }));
  }
  by("verdict").className = `verdict ${kind}`;
  by("verdict").replaceChildren(...lines);
}

function showReading() {
  const { ingest, results } = shown.answer;
  const used = results[0].traces?.shots ?? ingest.shots;
  const range = ([low, high]) => (low === high ? `${Math.round(low)} m` : `${Math.round(low)} to ${Math.round(high)} m`);
  const pairs = [
    ["file", `${ingest.format}, ${ingest.sample_format}, ${ingest.byte_order}-endian`],
    ["gathers", String(ingest.gathers)],
    ["shots", `${ingest.shots}, at ${range(ingest.shot_x_m)}${used < ingest.shots ? `; ${used} of them used` : ""}`],
    ["receivers", `${ingest.receivers}, at ${range(ingest.receiver_x_m)}`],
    ["samples", `${ingest.samples} of ${Number((ingest.dt_s * 1e3).toPrecision(6))} ms`],
    ...(ingest.traces === null ? [] : [["traces", String(ingest.traces)]]),
    ...(results[0].scale ? [["size", sizeOf(results[0].scale)]] : []),
    ["positions in", ingest.units === "ft" ? "feet, converted" : "metres"],
    ["took", timings(shown.answer.timings_ms)],
  ];
  by("ingest").replaceChildren(
    ...pairs.flatMap(([name, text]) => [element("dt", { text: name }), element("dd", { text })]),
  );
}

function sizeOf({ s, k, auto, line_m: line, depth_m: depth, peak_hz: peak, decided_by: decided, band }) {
  const round = (value) => Number(value.toPrecision(3));
  const heard = band ? `; signal at ${round(band.low_hz)} to ${round(band.high_hz)} Hz` : "";
  const why = auto ? `chosen, decided by ${decided.replaceAll("_", " ")}` : "given";
  const factors = `s = ${round(s)}${k === 1 ? "" : `, k = ${round(k)}`}`;
  return `${factors} (${why}): ${round(line)} m of line, ${round(depth)} m deep, ${round(peak)} Hz${heard}`;
}

function timings(stages) {
  const parts = Object.entries(stages).filter(([name]) => name !== "total");
  return parts.map(([name, ms]) => `${name} ${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`).join(", ");
}

function showWarnings(result) {
  const { warnings } = result;
  const title = warnings.length ? `Assumed or done (${warnings.length})` : "Nothing had to be assumed.";
  const items = warnings.map(({ code, detail }) => element("li", {}, `${detail} `, element("code", { className: "muted", text: code })));
  by("warnings").replaceChildren(
    element("h4", { text: title }), ...(items.length ? [element("ul", {}, ...items)] : []),
  );
}

function paintTraces() {
  const { traces } = shown;
  const canvas = by("traces");
  if (!traces) {
    canvas.setAttribute("aria-label", "The answer has no traces for this gather: only those of the first 64 shots are sent.");
    canvas.width = canvas.width; // emptied
    return;
  }
  const shot = Number(by("shot").value);
  const { dead } = drawTraces(canvas, { traces, shot, axis: by("axis").value, gain: Number(by("gain").value) });
  by("previous").disabled = shot === 0;
  by("next").disabled = shot === traces.shots - 1;
  const where = `Shot ${shot + 1} of ${traces.shots} at ${Math.round(traces.shotXM[shot])} metres`;
  const seconds = Number((traces.samples * traces.dtS).toPrecision(4));
  canvas.setAttribute("aria-label", `${where}: ${traces.receivers} traces of ${seconds} seconds, ${dead} of them dead.`);
}

function step(by_) {
  const select = by("shot");
  const wanted = Number(select.value) + by_;
  if (shown?.traces && wanted >= 0 && wanted < shown.traces.shots) {
    select.value = String(wanted);
    paintTraces();
  }
}

function showPhysics(result) {
  const truth = shown.physics;
  by("truth-head").hidden = by("truth-legend").hidden = truth === null;
  const rows = Object.entries(result.physics ?? {}).map(([name, quantity]) => {
    const { unit } = quantity;
    const told = (value) => `${number(value, unit)} ${unit}`.trim();
    const found = shown.distribution?.descriptors.find((each) => each.name === name);
    const head = element("th", { scope: "row", text: plainName(name), title: found?.definition ?? "" });
    const interval = `${number(quantity.low, unit)} to ${number(quantity.high, unit)}`;
    const cells = [
      head,
      element("td", { className: "number", text: told(quantity.value) }),
      element("td", { className: "number interval", text: `${interval} ${unit}`.trim() }),
    ];
    if (truth) {
      const outside = truth[name] < quantity.low || truth[name] > quantity.high;
      cells.push(element("td", { className: "number truth", text: told(truth[name]) + (outside ? " (outside)" : "") }));
    }
    const plot = element("td");
    if (found) {
      const label = `${plainName(name)}: ${told(quantity.value)}, 90 % interval ${interval}; gallery ${number(found.low, unit)} to ${number(found.high, unit)}`;
      plot.append(physicsPlot({ histogram: found, quantity, truth: truth?.[name] ?? null, format: told, label }));
    }
    return element("tr", {}, ...cells, plot);
  });
  by("physics").tBodies[0].replaceChildren(...rows);
}

async function copy() {
  const text = by("curl").textContent;
  try {
    await navigator.clipboard.writeText(text);
    by("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(by("curl"));
    by("copy").textContent = "Selected: press Ctrl-C";
  }
  setTimeout(() => {
    by("copy").textContent = "Copy";
  }, 2000);
}

by("gather-choice").addEventListener("change", () => showGather(Number(by("gather-choice").value)));
for (const id of ["shot", "axis", "gain"]) {
  by(id).addEventListener("input", () => shown && paintTraces());
}
by("previous").addEventListener("click", () => step(-1));
by("next").addEventListener("click", () => step(1));
by("copy").addEventListener("click", copy);
by("json").addEventListener("click", () => {
  const text = JSON.stringify(shown.answer, null, 1);
  save(new Blob([text], { type: "application/json" }), `${shown.question.name}.json`);
});

function repaint() {
  if (shown) {
    paintTraces();
    paintModels();
  }
}
new ResizeObserver(repaint).observe(by("answer"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
