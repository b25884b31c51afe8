// The elements of the page: found, made, filled, and files that are saved from it.

export const by = (id) => document.getElementById(id);

export function element(tag, { text = "", ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...(text ? [text] : []), ...children);
  return made;
}

export function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => element("option", { value: String(value), text })));
}

export function save(blob, name) {
  const href = URL.createObjectURL(blob);
  element("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

// Links in a line of text, one after the other; `things` are elements.
export function inLine(things) {
  return element("p", {}, ...things.flatMap((each, i) => (i ? [" · ", each] : [each])));
}
