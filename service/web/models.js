// Velocity models side by side on one colour scale: the truth where it is known, the model that is read, the matches.

import { address, call, keyGiven } from "./api.js";
import { drawBar, drawModel, placeInModel } from "./draw.js";
import { by, element, inLine, save } from "./elements.js";
import { readNpy } from "./npy.js";
import { form } from "./question.js";
import { fail } from "./state.js";

const FRAME = document.querySelector("main").dataset; // the line that the weights are for, as the server wrote it
const CELL_M = Number(FRAME.cellM); // of the gallery's models
const VELOCITIES = { low: Number(FRAME.slowestMS), high: Number(FRAME.fastestMS) };

let shown = null; // the answer whose models are shown; answer.js says what it has

export function flat(rows) {
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

export async function showModels(answered, result) {
  const at = answered;
  shown = answered;
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
  const files = [["npy", match.velocity_url], ["SEG-Y", match.velocity_url.replace(/npy(?=\?|$)/, "segy")]];
  return inLine(files.map(([kind, path]) => {
    const name = `${match.model_id.replaceAll(":", "_")}.${kind === "npy" ? "npy" : "segy"}`;
    const link = element("a", { href: address(path).href, download: name, text: kind });
    link.setAttribute("aria-label", `${kind} of match ${match.rank}`);
    link.addEventListener("click", (event) => {
      if (keyGiven()) { // a plain link brings no key
        event.preventDefault();
        call(path).then(async (response) => save(await response.blob(), name)).catch(fail);
      }
    });
    return link;
  }));
}

const READ_FORMATS = [["npz", "npz", "npz"], ["npy", "npy", "npy"], ["SEG-Y", "segy", "sgy"], ["netCDF", "nc", "nc"]];
const STARTING = [ // fields of POST /v1/read: name, label, example
  ["grid", "Grid (m): dx, and as wanted dz, x0, z0, nx, nz", "dx=12.5,dz=5"],
  ["smooth_m", "Smoothed, standard deviation (m)", "30"],
  ["water", "Water kept sharp: depth (m), velocity (m/s)", "depth=60,velocity=1480"],
];

// The model that is read, as files: the server reads the gather again and writes them.
function readDownloads() {
  if (shown.answer.results.length > 1) {
    return element("p", { className: "muted", text: "As a file of gathers sent one by one; the answer (JSON) below has it for each." });
  }
  const { question, given } = shown;
  const inputs = STARTING.map(([name, , placeholder]) => element("input", { name, placeholder, autocomplete: "off" }));
  const extend = element("input", { type: "checkbox", name: "extend" });
  const starting = () => Object.fromEntries([
    ...inputs.map(({ name, value }) => [name, value.trim()]), ["extend", extend.checked ? "true" : ""],
  ].filter(([, value]) => value));
  const buttons = READ_FORMATS.map(([text, format, ending]) => {
    const button = element("button", { type: "button", className: "link", text });
    button.setAttribute("aria-label", `${text} of the model read directly`);
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        const body = await form(question, { ...given, ...starting(), format });
        save(await (await call("v1/read", { method: "POST", body })).blob(), `${question.name}-read.${ending}`);
      } catch (error) {
        fail(error);
      } finally {
        button.disabled = false;
      }
    });
    return button;
  });
  const wanted = element("details", { className: "starting" },
    element("summary", { text: "Files as an inversion takes it" }),
    ...STARTING.map(([, text], i) => element("label", { text }, inputs[i])),
    element("label", { className: "tick" }, extend, " Continued where nothing was read"));
  return element("div", {}, inLine(buttons), wanted);
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

export function meanDifference(one, other) {
  return one.values.reduce((sum, value, i) => sum + Math.abs(value - other.values[i]), 0) / one.values.length;
}

export function scaleOf(maps) {
  let [low, high] = [Infinity, -Infinity];
  for (const { values } of maps) {
    for (const value of values) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  return low < high ? { low: Math.floor(low / 100) * 100, high: Math.ceil(high / 100) * 100 } : VELOCITIES;
}

export function paintModels(mark = null) {
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

by("difference").addEventListener("change", () => paintModels());
