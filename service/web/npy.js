// A two-dimensional array of an npy file: {rows, columns, values}.

const KINDS = { "<f4": Float32Array, "<u2": Uint16Array };

export function readNpy(buffer) {
  const bytes = new Uint8Array(buffer);
  const view = new DataView(buffer);
  const wide = bytes[6] > 1;
  const start = (wide ? 12 : 10) + (wide ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = new TextDecoder("latin1").decode(bytes.subarray(wide ? 12 : 10, start));
  const kind = KINDS[/'descr': '([^']+)'/.exec(header)?.[1]];
  const shape = /'shape': \((\d+), (\d+)\)/.exec(header);
  if (!kind || !shape || /'fortran_order': True/.test(header)) {
    throw new Error(`The server sent a map that the page cannot draw: ${header.trim()}`);
  }
  const [rows, columns] = [Number(shape[1]), Number(shape[2])];
  return { rows, columns, values: Float32Array.from(new kind(buffer.slice(start), 0, rows * columns)) };
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
