// The page: sends requests and shows the answers. What is shown is in `shown`; every picture is drawn from it.

import { address, call, keyGiven, Refused, useKey } from "./api.js";
import { drawBar, drawModel, drawTraces, physicsPlot, placeInModel } from "./draw.js";
import { readNpy, readTraces } from "./npy.js";
import { advice, number, plainName, presence, verdict } from "./words.js";

const INCLUDE = "descriptors,physics,model,traces";
const GEOMETRY = ["dt_s", "peak_hz", "scale", "target_depth_m", "shot_x_m", "receiver_x_m"];
const FRAME = document.querySelector("main").dataset; // the line that the weights are for, as the server wrote it
const CELL_M = Number(FRAME.cellM); // of the gallery's models
const VELOCITIES = { low: Number(FRAME.slowestMS), high: Number(FRAME.fastestMS) };

const by = (id) => document.getElementById(id);

let asked = null; // {file, name, sample}: what "ask again" sends
let running = null; // AbortController of the request on its way
let distribution = null; // with the ``query`` that it was asked with
let shown = null; // {answer, sample, index, traces, panels, models}

function element(tag, { text = "", ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...(text ? [text] : []), ...children);
  return made;
}

// --- state

function say(kind, ...lines) {
  by("state").className = `state ${kind}`;
  by("state-text").replaceChildren(...lines);
  by("help").replaceChildren();
  by("help").hidden = true;
}

function offer(...things) {
  by("help").replaceChildren(...things);
  by("help").hidden = false;
}

function againButton(text = "Try again") {
  return element("button", { type: "button", text, onclick: () => ask(asked) });
}

function busy(on) {
  by("busy").hidden = !on;
  by("answer").setAttribute("aria-busy", String(on));
}

function fail(error) {
  if (error.name === "AbortError") {
    const before = shown ? ` What is shown is still the answer to ${shown.question.name}.` : "";
    say("", element("p", { text: `Cancelled. Nothing was changed.${before}` }));
    return;
  }
  if (!(error instanceof Refused)) {
    const words = error instanceof TypeError ? "The server cannot be reached from here." : error.message;
    say("refused", element("p", {}, element("b", { className: "mark", text: "✗ Failed. " }), words),
      element("p", { className: "muted", text: `Is it running at ${address("").href}? (${error.message})` }));
    offer(againButton());
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
  if (status !== 401 && asked) {
    offer(againButton());
  }
}

// --- requests

function fields() {
  const form = new FormData(by("ask"));
  const given = { top_k: form.get("top_k") || "5", include: INCLUDE };
  if (form.get("family")) {
    given.filter = JSON.stringify({ family: form.get("family") });
  }
  for (const name of GEOMETRY) {
    const text = String(form.get(name) ?? "").trim();
    if (text) {
      given[name] = text;
    }
  }
  return given;
}

// what accompanies an answer and is no part of it: where it fails, the answer is shown without it
async function beside(fetched) {
  try {
    return await fetched();
  } catch {
    return null;
  }
}

// What is sent: the fields, and the file of a question.
async function form(question, given, signal = undefined) {
  const file = question.file ?? (await (await call(`web/samples/${question.sample.file}`, { signal })).blob());
  const body = new FormData();
  for (const [name, value] of Object.entries(given)) {
    body.append(name, value);
  }
  body.append("file", file, question.name);
  return body;
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
    shown = { answer, question, given, ground, physics: known ? question.sample.physics ?? null : null, query, models: new Map() };
    show(ms);
  } catch (error) {
    if (running === mine) {
      if (error.name !== "AbortError") {
        clear();
      }
      fail(error);
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

// --- the answer

// An earlier answer is not shown beside the refusal of a later request.
function clear() {
  shown = null;
  by("answer").hidden = true;
}

function show(ms) {
  const { answer, question } = shown;
  by("answer").hidden = false;
  by("key-field").hidden = true;
  by("answer-title").textContent = `Answer: ${question.name}`;
  by("which").hidden = answer.results.length < 2;
  fill(by("gather-choice"), answer.results.map((_, i) => [i, `${i + 1} of ${answer.results.length}`]));
  showReading();
  showCurl();
  showGather(0);
  const first = answer.results[0].matches[0];
  const best = first ? `best match ${first.model_id}, similarity ${first.similarity.toFixed(3)}` : "no match";
  const server = answer.timings_ms.total ? `, of which the server needed ${Math.round(answer.timings_ms.total)} ms` : "";
  say("done", element("p", { text: `Answered in ${Math.round(ms)} ms${server}: ${best}.` }));
  by("answer-title").focus({ preventScroll: true });
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  by("state").scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
}

function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => element("option", { value: String(value), text })));
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
  showModels(result);
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

// --- traces

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

// --- velocity models

function flat(rows) {
  return { rows: rows.length, columns: rows[0].length, values: Float32Array.from(rows.flat()) };
}

// The model that the encoder reads, and how wide its 90 % interval is in each cell, where the weights state one.
function readPanels(model) {
  const cellM = model.cell_m;
  const stated = model.low !== null && model.high !== null;
  const without = stated ? "" : "; these weights state no interval for its cells";
  const note = `by the encoder alone, without the gallery: the starting model to take${without}`;
  const read = { title: "Read directly", note, map: flat(model.value), cellM, aside: true, files: true };
  if (!stated) {
    return [read];
  }
  const width = flat(model.high.map((row, i) => row.map((high, j) => high - model.low[i][j])));
  const scale = { low: 0, high: Math.ceil(Math.max(...width.values) / 100) * 100 };
  const range = `${Math.round(Math.min(...width.values))} to ${Math.round(Math.max(...width.values))} m/s`;
  const said = `how wide it is in each cell, ${range}: dark where the record says more`;
  return [read, { title: "Its 90 % interval", note: said, map: width, cellM, scale, aside: true, width: true }];
}

async function showModels(result) {
  const at = shown;
  const panels = [];
  const cellM = result.scale?.cell_m ?? CELL_M;
  if (at.ground) {
    panels.push({ title: "True ground", note: at.question.sample.about, map: at.ground, cellM: CELL_M, aside: true });
  }
  panels.push(...(result.model ? readPanels(result.model) : []));
  for (const match of result.matches) {
    panels.push({ title: `${match.rank}. ${match.family ?? "no family"}`, match, map: at.models.get(match.model_id) ?? null, cellM });
  }
  at.panels = panels;
  by("models").replaceChildren(...panels.map(panelItem));
  by("difference").disabled = result.matches.length < 2;
  paintModels();
  const fetched = panels.filter(({ match, map }) => match && !map).map(async (panel) => {
    const id = encodeURIComponent(panel.match.model_id);
    const [map, about] = await Promise.all([call(panel.match.velocity_url), call(`v1/models/${id}${at.query}`)]);
    panel.map = readNpy(await map.arrayBuffer());
    panel.about = await about.json();
    at.models.set(panel.match.model_id, panel.map);
  });
  for (const { reason } of (await Promise.allSettled(fetched)).filter(({ status }) => status === "rejected")) {
    by("readout").textContent = `A model could not be fetched: ${reason.message}`;
  }
  if (shown === at && at.panels === panels) {
    panels.forEach(finishPanel);
    paintModels();
  }
}

function panelItem(panel) {
  const canvas = element("canvas");
  canvas.setAttribute("role", "img");
  panel.canvas = canvas;
  panel.off = element("p", { className: "muted", text: " " });
  const item = element("li", { className: panel.aside ? "aside" : "" });
  const { match } = panel;
  item.append(element("h4", { text: panel.title }), canvas);
  if (match) {
    const similarity = `similarity ${match.similarity.toFixed(3)}`;
    item.append(element("p", { className: "figure", text: similarity, title: "cosine, -1 to 1" }));
    panel.tags = element("p", { className: "tags" });
    item.append(element("p", {}, element("code", { text: match.model_id })), panel.off, downloads(match), panel.tags);
  } else {
    item.append(element("p", { className: "muted", text: panel.note }), panel.off, ...(panel.files ? [readDownloads()] : []));
  }
  canvas.addEventListener("pointermove", (event) => point(placeInModel(canvas, event)));
  canvas.addEventListener("pointerleave", () => point(null));
  return item;
}

function downloads(match) {
  const line = element("p", {});
  for (const [kind, path] of [["npy", match.velocity_url], ["SEG-Y", match.velocity_url.replace(/npy(?=\?|$)/, "segy")]]) {
    const name = `${match.model_id.replaceAll(":", "_")}.${kind === "npy" ? "npy" : "segy"}`;
    const link = element("a", { href: address(path).href, download: name, text: kind });
    link.setAttribute("aria-label", `${kind} of match ${match.rank}`);
    link.addEventListener("click", (event) => {
      if (keyGiven()) { // a plain link brings no key
        event.preventDefault();
        call(path).then(async (response) => save(await response.blob(), name)).catch(fail);
      }
    });
    line.append(line.childNodes.length ? " · " : "", link);
  }
  return line;
}

const READ_FORMATS = [["npz", "npz", "npz"], ["npy", "npy", "npy"], ["SEG-Y", "segy", "sgy"], ["netCDF", "nc", "nc"]];

// The model that is read, as files: the server reads the gather again and writes them.
function readDownloads() {
  if (shown.answer.results.length > 1) {
    return element("p", { className: "muted", text: "As a file of gathers sent one by one; the answer (JSON) below has it for each." });
  }
  const line = element("p", {});
  const { question, given } = shown;
  for (const [text, format, ending] of READ_FORMATS) {
    const button = element("button", { type: "button", className: "link", text });
    button.setAttribute("aria-label", `${text} of the model read directly`);
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        const body = await form(question, { ...given, format });
        save(await (await call("v1/read", { method: "POST", body })).blob(), `${question.name}-read.${ending}`);
      } catch (error) {
        fail(error);
      } finally {
        button.disabled = false;
      }
    });
    line.append(line.childNodes.length ? " · " : "", button);
  }
  return line;
}

function save(blob, name) {
  const href = URL.createObjectURL(blob);
  element("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

function finishPanel(panel) {
  const { match, about } = panel;
  if (match && about) {
    const said = [...about.tags, ...(about.source ? [about.source] : [])];
    panel.tags.replaceChildren(...said.map((text) => element("span", { text })));
  }
}

function mean(map) {
  return map.values.reduce((sum, value) => sum + value, 0) / map.values.length;
}

function meanDifference(one, other) {
  return one.values.reduce((sum, value, i) => sum + Math.abs(value - other.values[i]), 0) / one.values.length;
}

function scaleOf(maps) {
  let [low, high] = [Infinity, -Infinity];
  for (const { values } of maps) {
    for (const value of values) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  return low < high ? { low: Math.floor(low / 100) * 100, high: Math.ceil(high / 100) * 100 } : VELOCITIES;
}

function paintModels(mark = null) {
  if (!shown?.panels) {
    return;
  }
  const there = shown.panels.filter(({ map }) => map);
  const scale = scaleOf(there.filter(({ width }) => !width).map(({ map }) => map));
  const first = shown.panels.find(({ match, map }) => match && map)?.map ?? null;
  const differing = by("difference").checked && first !== null;
  by("difference-bar-figure").hidden = !differing;
  const others = there.filter(({ match, map }) => match && map !== first && map.values.length === first?.values.length);
  let reach = 100;
  for (const { map } of others) {
    map.values.forEach((value, i) => {
      reach = Math.max(reach, Math.abs(value - first.values[i]));
    });
  }
  reach = Math.ceil(reach / 100) * 100;
  drawBar(by("bar"), { scale, label: "velocity (m/s)" });
  by("bar").setAttribute("aria-label", `Colour scale of all models: ${scale.low} to ${scale.high} metres a second, dark to light.`);
  const apart = { low: -reach, high: reach };
  if (differing) {
    drawBar(by("difference-bar"), { scale: apart, label: "difference to the first match (m/s)", difference: true });
    by("difference-bar").setAttribute("aria-label", `Colour scale of differences: ${-reach} to ${reach} metres a second, blue to brown.`);
  }
  for (const panel of there) {
    const minus = differing && others.includes(panel) ? first : null;
    drawModel(panel.canvas, { map: panel.map, cellM: panel.cellM, scale: minus ? apart : panel.scale ?? scale, minus, mark });
    describe(panel, first);
  }
}

function describe(panel, first) {
  const { map, match } = panel;
  const { low, high } = { low: Math.round(Math.min(...map.values)), high: Math.round(Math.max(...map.values)) };
  const apart = [];
  if ((match || panel.files) && shown.ground && map.values.length === shown.ground.values.length) {
    apart.push(`${Math.round(meanDifference(map, shown.ground))} m/s off the true ground`);
  }
  if (match && first && map !== first && map.values.length === first.values.length) {
    apart.push(`${Math.round(meanDifference(map, first))} m/s off the first`);
  }
  panel.off.textContent = apart.join(", ") || " ";
  const name = match ? `Match ${match.rank}, ${match.family ?? "without a family"}, similarity ${match.similarity.toFixed(3)}` : panel.title;
  const label = panel.width ? `${name}, width of: ${low} to ${high} metres a second.` : `${name}: ${low} to ${high} metres a second, mean ${Math.round(mean(map))}. ${apart.join(", ")}`;
  panel.canvas.setAttribute("aria-label", label);
}

function point(place) {
  paintModels(place);
  if (!place) {
    by("readout").textContent = "Point at a model to read all of them at that place.";
    return;
  }
  const read = shown.panels.filter(({ map }) => map).map(({ map, match, title }) => {
    const cell = Math.floor(place.y * map.rows) * map.columns + Math.floor(place.x * map.columns);
    return `${match ? match.rank : title}: ${Math.round(map.values[cell])}`;
  });
  const { map, cellM } = shown.panels.find((panel) => panel.map);
  const [x, depth] = [place.x * map.columns * cellM, place.y * map.rows * cellM].map(Math.round);
  by("readout").textContent = `x ${x} m, depth ${depth} m, m/s: ${read.join(" · ")}`;
}

// --- physics

function showPhysics(result) {
  const truth = shown.physics;
  by("truth-head").hidden = by("truth-legend").hidden = truth === null;
  const rows = Object.entries(result.physics ?? {}).map(([name, quantity]) => {
    const { unit } = quantity;
    const told = (value) => `${number(value, unit)} ${unit}`.trim();
    const found = distribution?.descriptors.find((each) => each.name === name);
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

// --- downloads

function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

function showCurl() {
  const { question, given } = shown;
  const key = keyGiven() ? ` -H "Authorization: Bearer $SEISBIND_API_KEY"` : "";
  const lines = [];
  if (question.sample) {
    lines.push(`curl --fail-with-body -O${key} ${quoted(address(`web/samples/${question.sample.file}`).href)}`);
  }
  const parts = Object.entries(given).filter(([name]) => name !== "include").map(([name, value]) => ` -F ${quoted(`${name}=${value}`)}`);
  lines.push(`curl --fail-with-body${key} -F ${quoted(`file=@${question.name}`)}${parts.join("")} ${address("v1/retrieve").href}`);
  const geometry = Object.entries(given).filter(([name]) => GEOMETRY.includes(name)).map(([name, value]) => ` -F ${quoted(`${name}=${value}`)}`);
  lines.push(`curl --fail-with-body${key} -o read.npz -F ${quoted(`file=@${question.name}`)}${geometry.join("")} ${address("v1/read").href}`);
  by("curl").textContent = lines.join("\n");
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

// --- start

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
by("gather-choice").addEventListener("change", () => showGather(Number(by("gather-choice").value)));
for (const id of ["shot", "axis", "gain"]) {
  by(id).addEventListener("input", () => shown && paintTraces());
}
by("previous").addEventListener("click", () => step(-1));
by("next").addEventListener("click", () => step(1));
by("difference").addEventListener("change", () => paintModels());
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
start();
