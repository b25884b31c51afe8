// Colour maps as tables of 256 RGB triples. Velocity: viridis, uniform in lightness and readable for the colour-blind.
// Differences: blue through white to red-brown. Traces: white through grey to black.

const VIRIDIS = [
  [68, 1, 84], [71, 24, 106], [71, 45, 123], [66, 64, 134], [59, 82, 139], [51, 99, 141], [44, 114, 142], [38, 130, 142],
  [33, 145, 140], [31, 160, 136], [40, 174, 128], [63, 188, 115], [94, 201, 98], [132, 212, 75], [173, 220, 48],
  [216, 226, 25], [253, 231, 37],
];
const DIVERGING = [
  [17, 64, 122], [53, 112, 170], [114, 164, 206], [180, 208, 229], [245, 245, 243], [238, 203, 172], [216, 148, 102],
  [176, 92, 52], [120, 46, 16],
];
const GREYS = [[255, 255, 255], [128, 128, 128], [0, 0, 0]];

function table(anchors) {
  const rgb = new Uint8Array(256 * 3);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (anchors.length - 1);
    const low = Math.min(Math.floor(at), anchors.length - 2);
    for (let c = 0; c < 3; c++) {
      rgb[3 * i + c] = Math.round(anchors[low][c] + (at - low) * (anchors[low + 1][c] - anchors[low][c]));
    }
  }
  return rgb;
}

export const viridis = table(VIRIDIS);
export const diverging = table(DIVERGING);
export const greys = table(GREYS);
