// Pictures on canvas: traces, velocity models and colour scales, with axes; and the physics plots as SVG.

import { diverging, greys, viridis } from "./colours.js";

const FONT = "11px system-ui, sans-serif";
const GAIN_POWER = 1.5; // of time: makes up for spreading and reflection losses
const CLIP_SHARE = 0.96; // of absolute gained pressure: the direct wave saturates, the reflections show

function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function begin(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.font = FONT;
  context.fillStyle = ink("--ink");
  context.strokeStyle = ink("--strong");
  return { context, width, height };
}

// `shade(row, column)` is 0 to 1, a place in the colour table; NaN stays transparent.
function raster(rows, columns, colours, shade) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const place = shade(row, column);
      if (Number.isNaN(place)) {
        continue;
      }
      const colour = 3 * Math.round(255 * Math.min(1, Math.max(0, place)));
      const at = 4 * (row * columns + column);
      image.data[at] = colours[colour];
      image.data[at + 1] = colours[colour + 1];
      image.data[at + 2] = colours[colour + 2];
      image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

export function ticks(low, high, wanted) {
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) {
    found.push(Math.abs(at) < step * 1e-6 ? 0 : at);
  }
  return found;
}

function short(number) {
  return String(Number(number.toPrecision(6))).replace("-", "−");
}

// A frame with both axes around `box`; x and y are {low, high, label}, y downwards unless it is `up`;
// of an x that is `whole` there are no parts.
function axes(context, box, x, y) {
  const [left, top, width, height] = box;
  context.strokeRect(left + 0.5, top + 0.5, width - 1, height - 1);
  context.textBaseline = "top";
  context.textAlign = "center";
  for (const at of ticks(x.low, x.high, Math.max(2, width / 62)).filter((each) => !x.whole || Number.isInteger(each))) {
    const px = left + ((at - x.low) / (x.high - x.low)) * width;
    context.fillRect(Math.min(px, left + width - 1), top + height, 1, 4);
    context.fillText(short(at), px, top + height + 6);
  }
  if (x.label) {
    context.fillText(x.label, left + width / 2, top + height + 19);
  }
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const at of ticks(y.low, y.high, Math.max(2, height / 45))) {
    const share = (at - y.low) / (y.high - y.low);
    const py = top + (y.up ? 1 - share : share) * height;
    context.fillRect(left - 4, Math.min(py, top + height - 1), 4, 1);
    context.fillText(short(at), left - 6, py);
  }
  context.save();
  context.translate(7, top + height / 2);
  context.rotate(-Math.PI / 2);
  context.textAlign = "center";
  context.fillText(y.label, 0, 0);
  context.restore();
}

const NARROW = 190; // pixels; a narrower model leaves out the titles of its axes

function modelBox(width, height) {
  const [left, bottom] = width < NARROW ? [28, 20] : [44, 36];
  return [left, 8, width - left - 12, height - 8 - bottom];
}

// `map` is {rows, columns, values}, cells of `cellM`, the first at `x0M`; `scale` {low, high}; with `minus`, the
// difference to that map.
export function drawModel(canvas, { map, cellM, scale, minus = null, mark = null, x0M = 0 }) {
  const { context, width, height } = begin(canvas);
  const box = modelBox(width, height);
  const [left, top, inner, deep] = box;
  const { rows, columns, values } = map;
  const shade = (row, column) => {
    const at = row * columns + column;
    const value = minus ? values[at] - minus.values[at] : values[at];
    return (value - scale.low) / (scale.high - scale.low);
  };
  context.imageSmoothingEnabled = false;
  context.drawImage(raster(rows, columns, minus ? diverging : viridis, shade), left, top, inner, deep);
  axes(
    context, box,
    { low: x0M, high: x0M + columns * cellM, label: width < NARROW ? "" : "x (m)" },
    { low: 0, high: rows * cellM, label: width < NARROW ? "" : "depth (m)" },
  );
  if (mark) {
    const [px, py] = [left + mark.x * inner, top + mark.y * deep];
    context.strokeStyle = "#ffffff";
    context.lineWidth = 3;
    cross(context, px, py);
    context.strokeStyle = "#000000";
    context.lineWidth = 1.2;
    cross(context, px, py);
  }
}

function cross(context, x, y) {
  context.beginPath();
  context.moveTo(x - 7, y);
  context.lineTo(x + 7, y);
  context.moveTo(x, y - 7);
  context.lineTo(x, y + 7);
  context.stroke();
}

// Where a pointer is in a model's picture: {x, y} from 0 to 1, or null outside of it.
export function placeInModel(canvas, event) {
  const rectangle = canvas.getBoundingClientRect();
  const [left, top, inner, deep] = modelBox(rectangle.width, rectangle.height);
  const x = (event.clientX - rectangle.left - left) / inner;
  const y = (event.clientY - rectangle.top - top) / deep;
  return x >= 0 && x < 1 && y >= 0 && y < 1 ? { x, y } : null;
}

export function drawBar(canvas, { scale, label, difference = false }) {
  const { context, width } = begin(canvas);
  const [left, inner] = [22, width - 44];
  context.imageSmoothingEnabled = true;
  context.drawImage(raster(1, 256, difference ? diverging : viridis, (_, i) => i / 255), left, 2, inner, 12);
  context.strokeRect(left + 0.5, 2.5, inner - 1, 11);
  context.textBaseline = "top";
  context.textAlign = "center";
  for (const at of ticks(scale.low, scale.high, Math.max(2, inner / 60))) {
    const px = left + ((at - scale.low) / (scale.high - scale.low)) * inner;
    context.fillRect(Math.min(px, left + inner - 1), 14, 1, 4);
    context.fillText(short(at), px, 20);
  }
  context.fillText(label, left + inner / 2, 36);
}

// Pressure times a power of time, of one shot; and where black is full, 96 % of it.
function gainedShot({ samples, receivers, dtS, values }, shot) {
  const from = shot * samples * receivers;
  const gained = new Float32Array(samples * receivers);
  const dead = new Array(receivers).fill(true);
  for (let t = 0; t < samples; t++) {
    const factor = ((t + 1) * dtS) ** GAIN_POWER;
    for (let r = 0; r < receivers; r++) {
      const value = values[from + t * receivers + r];
      dead[r] &&= value === 0;
      gained[t * receivers + r] = value * factor;
    }
  }
  const sizes = gained.map(Math.abs).filter((size) => size > 0).sort();
  return { gained, dead, clip: sizes[Math.floor(sizes.length * CLIP_SHARE)] || 1 };
}

// One shot as variable density, black positive; as dark as `like`, other traces of the same shots, would be.
export function drawTraces(canvas, { traces, shot, axis, gain, like = null }) {
  const { context, width, height } = begin(canvas);
  const { samples, receivers, dtS, stepM, shotXM } = traces;
  const { gained, dead, clip: own } = gainedShot(traces, shot);
  const clip = (like ? gainedShot(like, shot).clip : own) * 2 ** -gain;
  const box = [46, 6, width - 46 - 12, height - 6 - 38];
  const [left, top, inner, deep] = box;
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  const picture = raster(samples, receivers, greys, (t, r) => 0.5 + gained[t * receivers + r] / clip / 2);
  context.drawImage(picture, left, top, inner, deep);
  context.strokeStyle = "#8a2f10";
  context.setLineDash([2, 4]);
  context.lineWidth = 1.5;
  dead.forEach((isDead, r) => {
    if (isDead) {
      const px = left + ((r + 0.5) / receivers) * inner;
      context.beginPath();
      context.moveTo(px, top);
      context.lineTo(px, top + deep);
      context.stroke();
    }
  });
  context.setLineDash([]);
  context.lineWidth = 1;
  context.strokeStyle = ink("--strong");
  const half = stepM / 2;
  const origin = axis === "offset" ? shotXM[shot] : 0;
  const x = { low: -half - origin, high: (receivers - 1) * stepM + half - origin };
  axes(
    context, box,
    { ...x, label: axis === "offset" ? "offset (m)" : "receiver position (m)" },
    { low: 0, high: samples * dtS, label: "time (s)" },
  );
  const px = left + ((shotXM[shot] - origin - x.low) / (x.high - x.low)) * inner;
  context.fillStyle = "#a3360f";
  context.beginPath();
  context.moveTo(px - 5, top);
  context.lineTo(px + 5, top);
  context.lineTo(px, top + 8);
  context.fill();
  return { dead: dead.filter(Boolean).length };
}

// How late a prediction is, trace by trace and window by window: `map` has windows as rows, from `fromS` to `toS` of
// `traces`, whose axes it gets; `scale` {low, high} in seconds. Grey where nothing is followed.
export function drawLags(canvas, { map, fromS, toS, traces, scale }) {
  const { context, width, height } = begin(canvas);
  const { samples, receivers, dtS, stepM } = traces;
  const box = [46, 6, width - 46 - 12, height - 6 - 38];
  const [left, top, inner, deep] = box;
  const shade = (row, column) => (map.values[row * map.columns + column] - scale.low) / (scale.high - scale.low);
  const whole = samples * dtS;
  context.fillStyle = ink("--bars");
  context.fillRect(left, top, inner, deep);
  context.fillStyle = ink("--ink");
  context.imageSmoothingEnabled = false;
  context.drawImage(
    raster(map.rows, map.columns, diverging, shade), left, top + (fromS / whole) * deep, inner, ((toS - fromS) / whole) * deep,
  );
  const x = { low: -stepM / 2, high: (receivers - 0.5) * stepM, label: "receiver position (m)" };
  axes(context, box, x, { low: 0, high: whole, label: "time (s)" });
}

// What is left to explain, iteration by iteration: `points` are {iteration, residual}.
export function drawCurve(canvas, { points, of }) {
  const { context, width, height } = begin(canvas);
  const box = [46, 6, width - 46 - 12, height - 6 - 38];
  const [left, top, inner, deep] = box;
  const high = Math.max(...points.map(({ residual }) => residual), 1e-6) * 1.05;
  axes(context, box, { low: 0, high: of, label: "iteration", whole: true }, { low: 0, high, label: "residual", up: true });
  context.strokeStyle = context.fillStyle = ink("--accent");
  context.lineWidth = 2;
  context.beginPath();
  for (const { iteration, residual } of points) {
    context.lineTo(left + (iteration / of) * inner, top + (1 - residual / high) * deep);
  }
  context.stroke();
  for (const { iteration, residual } of points) {
    context.beginPath();
    context.arc(left + (iteration / of) * inner, top + (1 - residual / high) * deep, 2.5, 0, 2 * Math.PI);
    context.fill();
  }
}

// A picture that the server drew, as large as the canvas is wide.
export function drawPicture(canvas, bitmap) {
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
}

function shape(name, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) {
    element.setAttribute(attribute, value);
  }
  element.textContent = text;
  return element;
}

// A histogram {low, high, counts} with an interval and a value; `truth` may be null. All in one unit.
export function physicsPlot({ histogram, quantity, truth, format, label }) {
  const [width, height] = [300, 22];
  const places = [histogram.low, histogram.high, quantity.low, quantity.high, quantity.value];
  if (truth !== null) {
    places.push(truth);
  }
  const pad = (Math.max(...places) - Math.min(...places) || 1) * 0.02;
  const [low, high] = [Math.min(...places) - pad, Math.max(...places) + pad];
  const x = (value) => ((value - low) / (high - low)) * width;
  const plot = shape("svg", { viewBox: `0 0 ${width} 34`, role: "img", "aria-label": label });
  const most = Math.max(...histogram.counts, 1);
  const part = (histogram.high - histogram.low) / histogram.counts.length;
  histogram.counts.forEach((count, i) => {
    const tall = (count / most) * height;
    const from = x(histogram.low + i * part);
    const wide = Math.max(x(histogram.low + (i + 1) * part) - from, 1);
    plot.append(shape("rect", { class: "h-bar", x: from, y: height - tall, width: wide, height: tall }));
  });
  const band = { x: x(quantity.low), width: Math.max(x(quantity.high) - x(quantity.low), 1) };
  plot.append(shape("rect", { class: "h-band", y: 0, height, ...band }));
  for (const end of [band.x, band.x + band.width]) {
    plot.append(shape("line", { class: "h-edge", x1: end, x2: end, y1: 0, y2: height }));
  }
  plot.append(shape("line", { class: "h-axis", x1: 0, x2: width, y1: height, y2: height }));
  const value = x(quantity.value);
  plot.append(shape("line", { class: "h-value", x1: value, x2: value, y1: 0, y2: height }));
  if (truth !== null) {
    const at = x(truth);
    plot.append(shape("path", { class: "h-truth", d: `M${at - 4},-3 L${at + 4},-3 L${at},4 Z` }));
  }
  plot.append(
    shape("text", { class: "h-text", x: 0, y: 32 }, format(low + pad)),
    shape("text", { class: "h-text", x: width, y: 32, "text-anchor": "end" }, format(high - pad)),
  );
  return plot;
}
