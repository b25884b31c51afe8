// Refinements: asked for from an answer, followed line by line, cancelled, and listed as the server has them.

import { call, readLines, Refused } from "./api.js";
import { drawBar, drawCurve, drawModel, drawPicture } from "./draw.js";
import { by, element, inLine, save } from "./elements.js";
import { flat, meanDifference, scaleOf } from "./models.js";
import { mapOf, readNpz } from "./npy.js";
import { form } from "./question.js";
import { sentenceOf } from "./state.js";
import { duration, jobSentence } from "./words.js";

const ENDED = ["done", "failed", "cancelled"];
const FORMATS = [["npz", "npz", "npz"], ["npy", "npy", "npy"], ["SEG-Y", "segy", "sgy"], ["netCDF", "nc", "nc"]];
const TRIES = 5; // to go on with lines after a connection that broke
const PAUSE_MS = 1000; // before the next try, and between pictures of a model that improves

let from = null; // the answer that a refinement starts from
let opened = null; // {job, points, line, picture, result, stop}: the job that is shown
const begun = new Map(); // of this page's jobs, by id: {name, models}: what it is compared with, as {title, map, cellM}

const pause = (ms) => new Promise((done) => { setTimeout(done, ms); });

// --- asked for

export function offerRefinement(shown) {
  from = shown;
  const one = shown.answer.results.length === 1;
  by("refine-ask").disabled = !one;
  by("refine-state").textContent = one ? "" : "A refinement is about one gather: send a file that holds one.";
}

async function submit(event) {
  event.preventDefault();
  const { question, given, answer, ground } = from;
  const { include, top_k: count, ...fields } = given;
  by("refine-ask").disabled = true;
  by("refine-state").textContent = "Sending the gather.";
  try {
    for (const name of ["iterations", "start"]) {
      fields[name] = by("refine-form").elements[name].value;
    }
    const job = await (await call("v1/jobs", { method: "POST", body: await form(question, fields) })).json();
    const [{ model }] = answer.results;
    begun.set(job.job_id, {
      name: question.name,
      models: [
        ...(ground && model ? [{ title: "True ground", map: ground, cellM: model.cell_m, known: true }] : []),
        ...(model ? [{ title: "Read directly", map: flat(model.value), cellM: model.cell_m }] : []),
      ],
    });
    by("refine-state").textContent = "Taken. It is followed under “Refinements” below, and goes on without this page.";
    by("jobs").open = true;
    follow(job);
    by("job-title").focus();
  } catch (error) {
    by("refine-state").textContent = sentenceOf(error);
  } finally {
    by("refine-ask").disabled = false;
  }
}

// --- listed

function titleOf(job) {
  const name = begun.get(job.job_id)?.name;
  return `${name ? `${name}, ` : ""}${new Date(job.created_at).toLocaleString()}`;
}

async function list() {
  try {
    const { jobs } = await (await call("v1/jobs")).json();
    by("jobs-list").tBodies[0].replaceChildren(...jobs.map(row));
    by("jobs-list").hidden = jobs.length === 0;
    by("jobs-state").textContent = jobs.length ? "" : "There are none. One is asked for under an answer.";
  } catch (error) {
    by("jobs-list").hidden = true;
    by("jobs-state").textContent = sentenceOf(error);
  }
}

function row(job) {
  const { progress } = job;
  const button = element("button", { type: "button", text: "Show", onclick: () => follow(job) });
  button.setAttribute("aria-label", `Show the refinement of ${titleOf(job)}`);
  return element("tr", {},
    element("th", { scope: "row", text: titleOf(job) }),
    element("td", { text: job.state }),
    element("td", { className: "number", text: progress ? `${progress.iteration} of ${progress.of}` : "–" }),
    element("td", { className: "number", text: progress?.residual?.toFixed(3) ?? "–" }),
    element("td", {}, button));
}

// --- followed

async function follow(job) {
  opened?.stop.abort();
  const mine = { job, points: [], line: -1, picture: null, result: null, stop: new AbortController() };
  opened = mine;
  by("job").hidden = false;
  by("job-title").textContent = `Refinement of ${titleOf(job)}`;
  by("job-line").textContent = by("job-kept").textContent = "";
  describe(mine);
  list();
  try {
    await followLines(mine);
    mine.job = await (await call(`v1/jobs/${job.job_id}`)).json();
    if (mine.job.state === "done") {
      await fetchResult(mine);
    } else {
      await fetchPicture(mine);
    }
  } catch (error) {
    if (opened === mine && error.name !== "AbortError") {
      by("job-state").textContent = `${sentenceOf(error)} The job goes on; show it again from the list.`;
    }
    return;
  }
  if (opened === mine) {
    describe(mine);
    paint();
    list();
  }
}

// An answer of lines ends after some minutes, or where a connection breaks: asked again, it goes on after the last line.
async function followLines(mine) {
  const { signal } = mine.stop;
  let tries = 0;
  while (tries < TRIES) {
    try {
      const lines = await call(`v1/jobs/${mine.job.job_id}/events?after=${mine.line}`, { signal });
      await readLines(lines, (line) => {
        tries = 0;
        take(mine, line);
      });
    } catch (error) {
      if (error.name === "AbortError" || (error instanceof Refused && error.problem.status < 429)) {
        throw error;
      }
    }
    if (ENDED.includes(mine.job.state)) {
      return;
    }
    tries += 1;
    await pause(PAUSE_MS);
    signal.throwIfAborted();
  }
  throw new Error("The server cannot be reached, or follows no more jobs at once.");
}

function take(mine, line) {
  mine.line = line.line;
  const changed = line.state !== mine.job.state;
  mine.job = { ...mine.job, state: line.state, detail: line.detail };
  if (line.iteration !== null) {
    mine.points.push(line);
    mine.job.progress = line;
    showPicture(mine);
  }
  if (opened === mine) {
    describe(mine);
    paint();
  }
  if (changed) {
    list();
  }
}

// While it runs the server draws its model; one picture at a time, and not each of fast iterations.
async function showPicture(mine) {
  if (!mine.drawing) {
    mine.drawing = true;
    await fetchPicture(mine);
    await pause(PAUSE_MS);
    mine.drawing = false;
  }
}

async function fetchPicture(mine) {
  try {
    const { signal } = mine.stop;
    const picture = await (await call(`v1/jobs/${mine.job.job_id}/image.png`, { signal })).blob();
    mine.picture = await createImageBitmap(picture);
    paint();
  } catch {
    // it has no model yet, or the server has more to do: the next iteration asks again
  }
}

async function fetchResult(mine) {
  const content = await (await call(`v1/jobs/${mine.job.job_id}/result.npz`, { signal: mine.stop.signal })).arrayBuffer();
  const found = readNpz(content, ["velocity", "cell_m"]);
  const refined = { title: "Refined", map: mapOf(found.velocity), cellM: found.cell_m.values[0] };
  mine.result = [...(begun.get(mine.job.job_id)?.models ?? []), refined];
}

// --- shown

function describe({ job, points, result }) {
  const said = jobSentence(job);
  if (by("job-state").textContent !== said) { // it is read aloud, and so not with each iteration
    by("job-state").textContent = said;
  }
  const last = points.at(-1);
  if (last) {
    const left = ENDED.includes(job.state) || last.seconds_left === null ? "" : `, ${duration(last.seconds_left)} left`;
    const stage = last.stage ? ` (${last.stage})` : "";
    by("job-line").textContent = `Iteration ${last.iteration} of ${last.of}${stage}, residual ${last.residual.toFixed(3)}${left}.`;
  }
  by("job-progress").hidden = ENDED.includes(job.state);
  by("job-progress").max = last?.of ?? job.iterations;
  by("job-progress").value = last?.iteration ?? 0;
  by("job-end").textContent = ENDED.includes(job.state) ? "Remove" : "Cancel";
  by("job-keep").hidden = job.state !== "done";
  by("job-models").replaceChildren(...(result ?? []).map((panel) => modelItem(panel, result)));
  by("job-files").replaceChildren(...(result ? [inLine(FORMATS.map((each) => fileButton(job, each)))] : []));
}

function modelItem(panel, all) {
  const { map, title } = panel;
  const truth = all.find(({ known }) => known)?.map;
  const off = truth && map !== truth ? `${Math.round(meanDifference(map, truth))} m/s off the true ground` : " ";
  panel.canvas = element("canvas");
  panel.canvas.setAttribute("role", "img");
  const [low, high] = [Math.round(Math.min(...map.values)), Math.round(Math.max(...map.values))];
  panel.canvas.setAttribute("aria-label", `${title}: ${low} to ${high} metres a second. ${off}`.trim());
  return element("li", {}, element("h4", { text: title }), panel.canvas, element("p", { className: "muted", text: off }));
}

function fileButton(job, [text, format, ending]) {
  const button = element("button", { type: "button", className: "link", text });
  button.setAttribute("aria-label", `${text} of the refined model`);
  button.addEventListener("click", async () => {
    try {
      const file = await (await call(`v1/jobs/${job.job_id}/result.${format}`)).blob();
      save(file, `${begun.get(job.job_id)?.name ?? job.job_id.slice(0, 8)}-refined.${ending}`);
    } catch (error) {
      by("job-state").textContent = sentenceOf(error);
    }
  });
  return button;
}

function paint() {
  if (!opened || !by("jobs").open) {
    return;
  }
  const { points, picture, result } = opened;
  by("job-curve-figure").hidden = points.length === 0;
  by("job-now").hidden = result !== null || picture === null;
  by("job-bar-figure").hidden = result === null;
  if (points.length) {
    drawCurve(by("job-curve"), { points, of: points.at(-1).of });
    const [first, last] = [points[0], points.at(-1)].map(({ residual }) => residual.toFixed(3));
    by("job-curve").setAttribute("aria-label", `Residual over ${points.length} iterations, from ${first} to ${last}.`);
  }
  if (result) {
    const scale = scaleOf(result.map(({ map }) => map));
    drawBar(by("job-bar"), { scale, label: "velocity (m/s)" });
    for (const { canvas, map, cellM } of result) {
      drawModel(canvas, { map, cellM, scale });
    }
  } else if (picture) {
    drawPicture(by("job-now").querySelector("canvas"), picture);
  }
}

async function end() {
  const mine = opened;
  by("job-end").disabled = true;
  try {
    const answer = await call(`v1/jobs/${mine.job.job_id}`, { method: "DELETE" });
    if (answer.status === 204) { // it had ended, and is gone
      opened = null;
      by("job").hidden = true;
      by("jobs").querySelector("summary").focus();
    }
    await list();
  } catch (error) {
    by("job-state").textContent = sentenceOf(error);
  } finally {
    by("job-end").disabled = false;
  }
}

// Into the gallery, if a check finds it usable as a starting model.
async function keep() {
  const mine = opened;
  by("job-keep").disabled = true;
  by("job-kept").textContent = "Checking the refined model.";
  let said = "";
  try {
    const kept = await (await call(`v1/jobs/${mine.job.job_id}/model`, { method: "POST" })).json();
    said = `Kept as ${kept.model_id}. ${kept.verdict.detail}`;
  } catch (error) {
    said = sentenceOf(error);
  } finally {
    by("job-keep").disabled = false;
  }
  if (opened === mine) {
    by("job-kept").textContent = said;
  }
}

by("refine-form").addEventListener("submit", submit);
by("job-end").addEventListener("click", end);
by("job-keep").addEventListener("click", keep);
by("jobs").addEventListener("toggle", () => {
  if (by("jobs").open) {
    list();
    paint();
  }
});
new ResizeObserver(paint).observe(by("jobs"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
