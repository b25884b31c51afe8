// Arrays of npy and npz files, and the traces of an answer.

const KINDS = { "<f4": Float32Array, "<f8": Float64Array, "<u2": Uint16Array, "|u1": Uint8Array, "|b1": Uint8Array };

// {shape, values}; of texts (numpy's "<U…") values is a list of strings.
function readArray(buffer) {
  const bytes = new Uint8Array(buffer);
  const view = new DataView(buffer);
  const wide = bytes[6] > 1;
  const start = (wide ? 12 : 10) + (wide ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = new TextDecoder("latin1").decode(bytes.subarray(wide ? 12 : 10, start));
  const type = /'descr': '([^']+)'/.exec(header)?.[1] ?? "";
  const shape = /'shape': \(([^)]*)\)/.exec(header)?.[1].split(",").filter((each) => each.trim()).map(Number);
  const letters = type.startsWith("<U") ? Number(type.slice(2)) : 0;
  const kind = letters ? Uint32Array : KINDS[type];
  if (!kind || !shape || /'fortran_order': True/.test(header)) {
    throw new Error(`The server sent an array that the page cannot read: ${header.trim()}`);
  }
  const count = shape.reduce((product, size) => product * size, 1) * (letters || 1);
  const values = new kind(buffer.slice(start), 0, count);
  if (!letters) {
    return { shape, values };
  }
  const texts = Array.from({ length: count / letters }, (_, i) => values.slice(i * letters, (i + 1) * letters));
  return { shape, values: texts.map((each) => String.fromCodePoint(...each.filter((letter) => letter))) };
}

// A two-dimensional array of an npy file: {rows, columns, values}.
export function readNpy(buffer) {
  return mapOf(readArray(buffer));
}

export function mapOf({ shape, values }) {
  if (shape.length !== 2) {
    throw new Error(`The server sent an array of ${shape.length} dimensions where the page draws two.`);
  }
  return { rows: shape[0], columns: shape[1], values: Float32Array.from(values) };
}

// The arrays of an npz file that is not compressed, as the server writes them: {name: {shape, values}}. `wanted` names
// those to read.
export function readNpz(buffer, wanted) {
  const view = new DataView(buffer);
  const bytes = new Uint8Array(buffer);
  let end = buffer.byteLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) {
    end -= 1;
  }
  const found = {};
  let at = view.getUint32(end + 16, true); // of the central directory
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    const [method, size] = [view.getUint16(at + 10, true), view.getUint32(at + 20, true)];
    const [named, extra, comment] = [28, 30, 32].map((place) => view.getUint16(at + place, true));
    const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + named)).replace(/\.npy$/, "");
    if (wanted.includes(name)) {
      if (method !== 0) {
        throw new Error("The server sent a compressed npz, which the page does not read.");
      }
      const local = view.getUint32(at + 42, true);
      const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
      found[name] = readArray(buffer.slice(start, start + size));
    }
    at += 46 + named + extra + comment;
  }
  return found;
}

// The traces of an answer: {shots, samples, receivers, dtS, stepM, shotXM, values} with values (shot, time, receiver).
export function readTraces(part) {
  const text = atob(part.int16);
  const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  return {
    shots: part.shots,
    samples: part.samples,
    receivers: part.receivers,
    dtS: part.dt_s,
    stepM: part.receiver_step_m,
    shotXM: part.shot_x_m,
    values: new Int16Array(bytes.buffer),
  };
}
