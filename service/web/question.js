// A question: a file and the fields that go with it, as a form and as a command.

import { address, call, keyGiven } from "./api.js";
import { by } from "./elements.js";

const INCLUDE = "descriptors,physics,model,traces";
const GEOMETRY = ["dt_s", "peak_hz", "scale", "target_depth_m", "shot_x_m", "receiver_x_m"];

// The fields that are filled in.
export function fields() {
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

// What is sent: the fields, and the file of a question.
export async function form(question, given, signal = undefined) {
  const file = question.file ?? (await (await call(`web/samples/${question.sample.file}`, { signal })).blob());
  const body = new FormData();
  for (const [name, value] of Object.entries(given)) {
    body.append(name, value);
  }
  body.append("file", file, question.name);
  return body;
}

function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

// The same question from a terminal.
export function curl(question, given) {
  const key = keyGiven() ? ` -H "Authorization: Bearer $SEISBIND_API_KEY"` : "";
  const lines = [];
  if (question.sample) {
    lines.push(`curl --fail-with-body -O${key} ${quoted(address(`web/samples/${question.sample.file}`).href)}`);
  }
  const parts = Object.entries(given).filter(([name]) => name !== "include").map(([name, value]) => ` -F ${quoted(`${name}=${value}`)}`);
  lines.push(`curl --fail-with-body${key} -F ${quoted(`file=@${question.name}`)}${parts.join("")} ${address("v1/retrieve").href}`);
  const geometry = Object.entries(given).filter(([name]) => GEOMETRY.includes(name)).map(([name, value]) => ` -F ${quoted(`${name}=${value}`)}`);
  lines.push(`curl --fail-with-body${key} -o read.npz -F ${quoted(`file=@${question.name}`)}${geometry.join("")} ${address("v1/read").href}`);
  return lines.join("\n");
}
