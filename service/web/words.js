// What the answer says, in words: names of quantities, verdicts, advice.

const NAMES = {
  std_velocity: "velocity spread (std)",
  min_velocity: "lowest velocity",
  max_velocity: "highest velocity",
  mean_vertical_gradient: "mean vertical gradient",
  mean_abs_vertical_gradient: "mean vertical change, absolute",
  mean_abs_lateral_gradient: "mean lateral change, absolute",
  shallow_velocity: "upper third, mean velocity",
  middle_velocity: "middle third, mean velocity",
  deep_velocity: "lower third, mean velocity",
  strongest_contrast_depth: "depth of the strongest contrast",
  interface_share: "share of cells at interfaces",
};

export function plainName(name) {
  return NAMES[name] ?? name.replaceAll("_", " ");
}

const DECIMALS = { "m/s": 0, m: 0, "1/s": 2, "": 3 };

export function number(value, unit) {
  const text = value.toFixed(DECIMALS[unit] ?? 2);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

const REASONS = {
  noise: "it is noisier than any gather of training",
  frequency: "its frequencies are not those of training",
  slow_waves: "it holds slow waves, such as surface waves, that training did not have",
  amplitudes: "its amplitudes look clipped or gained",
  geometry: "it has fewer live traces, or fewer or more shots, than any gather of training",
  ground: "the ground seems to be of a kind that training did not have",
};

// {kind, mark, words, detail}
export function verdict(inDistribution) {
  const { likely, reason, detail, score, limit } = inDistribution;
  if (likely === null) {
    return { kind: "", mark: "No verdict.", words: "These weights are not calibrated.", detail: "" };
  }
  const measured = `Score ${score.toFixed(2)}, limit ${limit.toFixed(2)}.`;
  if (likely) {
    const words = "The gather looks like those of training, on which the intervals were measured.";
    return { kind: "good", mark: "✓ Familiar.", words, detail: measured };
  }
  const words = `The gather is unlike those of training: ${REASONS[reason] ?? reason}. Take the answer with care.`;
  return { kind: "doubt", mark: "⚠ Unfamiliar.", words, detail: `${detail ?? ""} ${measured}`.trim() };
}

// {kind, mark, words, detail}: whether the true velocity model is in the gallery; docs/answers.md has the same limits.
// Null where the answer has neither a probability nor a reason for having none.
export function presence({ in_gallery: probability, ranked_by: rankedBy, warnings = [] }) {
  const order = rankedBy === "structure" ? ", ranked by structure" : "";
  if (typeof probability !== "number") {
    const why = warnings.find(({ code }) => code === "in_gallery_unknown");
    const words = `The gather is too unlike those of training to tell. Take the matches for a guess${order}.`;
    return why ? { kind: "doubt", mark: "? Unknown whether it is in the gallery.", words, detail: "" } : null;
  }
  const chance = Math.round(100 * probability);
  const detail = `The gallery's most similar model is the very ground with a probability of ${chance} %.`;
  if (probability > 0.9) {
    return { kind: "good", mark: "✓ In the gallery.", words: "Take the first match.", detail };
  }
  if (probability >= 0.2) {
    const words = "Where the first matches agree, believe them.";
    return { kind: "", mark: "Perhaps in the gallery.", words, detail };
  }
  const words = `Take the physics first; the matches are relatives${order}.`;
  return { kind: "doubt", mark: "⚠ Probably not in the gallery.", words, detail };
}

export function duration(seconds) {
  if (seconds < 90) {
    return `${Math.max(1, Math.round(seconds))} s`;
  }
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

export function jobSentence({ state, ahead, detail, error }) {
  const why = error?.detail ?? detail;
  const said = {
    queued: ahead ? `It waits for ${ahead} other${ahead === 1 ? "" : "s"}.` : "It is next.",
    running: "It is at work; it goes on without this page.",
    done: "It is done.",
    failed: "It has failed.",
    cancelled: "It was cancelled; its last model is kept.",
  }[state];
  return why ? `${said} ${why}` : said;
}

export function candidateName({ name, kind }) {
  return { mean: "the mean of the matches", read: "the model read directly", given: "the given model" }[kind] ?? name;
}

export function share(part) {
  return part === null ? "–" : `${Math.round(100 * part)} %`;
}

const ADVICE = {
  invalid_survey: "Enter positions and sampling under “Geometry” above, then ask again.",
  unsupported_format: "The page takes npy, npz, SEG-Y, SU and SEG-2 files; which one it is, the bytes say and not the name.",
  upload_too_large: "Cut the file to fewer gathers, or send it to /v1/retrieve/stream from a terminal.",
  overloaded: "The server has more to do than it takes on. Try again in a moment.",
  not_ready: "The server is starting or stopping. Try again in a moment.",
  key_required: "Enter an API key above; whoever runs this server hands them out.",
  key_unknown: "The server does not know this key. Enter another one above.",
  malformed_upload: "Write the file again, or check that it was copied whole.",
  invalid_gather: "Look at the samples of the file: the sentence above says what is wrong with them.",
  internal_error: "It is the server's fault. Whoever runs it finds the cause under the request id.",
};

export function advice(code) {
  return ADVICE[code] ?? "";
}
