// What all widgets share. Joined in front of each widget's own module, so names here are seen there.

// A DOM element. Texts go in as text, never as HTML: nothing that a reader types or imports can run.
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.flat());
  return element;
}

// The same for pictures that are drawn in lines.
function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const button = (text, press, attributes = {}) => h("button", { type: "button", onclick: press, ...attributes }, text);

// For what arrow keys move: JupyterLab would take them to go from cell to cell.
const OWN_KEYS = { "data-lm-suppress-shortcuts": "true" };

// A labelled slider with its value beside it; `input` hears each change as a number.
function slider(text, { min = 0, max = 1, step = 0.01, value = 0, show = (x) => x.toFixed(2) }, input) {
  const said = h("output", {}, show(value));
  const range = h("input", { type: "range", min: `${min}`, max: `${max}`, step: `${step}`, value: `${value}`, ...OWN_KEYS });
  range.addEventListener("input", () => {
    said.textContent = show(+range.value);
    input(+range.value);
  });
  const set = (next) => {
    range.value = next;
    said.textContent = show(next);
  };
  return { element: h("label", { class: "xw-slider" }, h("span", {}, text), range, said), set, range };
}

// A labelled choice among texts; `change` hears the index.
function choice(text, options, chosen, change) {
  const hear = () => change(select.selectedIndex), list = options.map((one) => h("option", {}, one));
  const select = h("select", { onchange: hear, ...OWN_KEYS }, list);
  select.selectedIndex = chosen;
  return { element: h("label", { class: "xw-choice" }, h("span", {}, text), select), select };
}

// A choice among images with buttons to the one before and after, the last before the first; `change` hears the index.
function imageChoice(names, chosen, [previous, next], change) {
  const { element, select } = choice("Image", names, chosen, change);
  const step = (by) => () => change((select.selectedIndex + by + names.length) % names.length);
  return { elements: [element, button(previous, step(-1)), button(next, step(1))], select };
}

// A table with a name; `rows` takes lines of cells. Columns from position `numbers` on hold numbers.
function table(label, head, numbers) {
  const cell = (tag, more) => (inside, k) => h(tag, { ...more, class: k < numbers ? null : "xw-number" }, inside);
  const body = h("tbody"), top = h("thead", {}, h("tr", {}, head.map(cell("th", { scope: "col" }))));
  const rows = (lines) => body.replaceChildren(...lines.map((line) => h("tr", {}, line.map(cell("td")))));
  const box = { style: "overflow-x:auto", tabindex: "0", role: "region", "aria-label": label }; // keys scroll it, too
  return { element: h("div", box, h("table", { "aria-label": label }, top, body)), rows };
}

// A packed array (see `pack` in base.py) as {shape, values: Float32Array}.
function unpack(packed) {
  const view = packed.bytes; // a DataView, in JupyterLab and on a page
  const count = packed.shape.reduce((a, b) => a * b, 1);
  const read = {
    float32: (i) => view.getFloat32(4 * i, true),
    float16: (i) => half(view.getUint16(2 * i, true)),
    uint8: (i) => view.getUint8(i),
    int8: (i) => view.getInt8(i) * packed.scale,
  }[packed.dtype];
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = read(i);
  return { shape: packed.shape, values };
}

// An object with all that is packed in it unpacked.
const unpacked = (given) =>
  Object.fromEntries(Object.entries(given).map(([name, one]) => [name, one?.bytes ? unpack(one) : one]));

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// A number with its sign, which a rounded 0 has not.
const withSign = (x, digits = 2) => `${+x.toFixed(digits) ? (x < 0 ? "−" : "+") : ""}${Math.abs(x).toFixed(digits)}`;
const limited = (x, low, high) => Math.max(low, Math.min(high, x));

// A map enlarged, bilinear; `place(k, small, large)` is where pixel k of a side's large ones lies among its small ones.
function stretched(values, [rows, columns], [height, width], place) {
  const between = (small, large) => Array.from({ length: large }, (_, k) => {
    const at = limited(place(k, small, large), 0, small - 1), low = Math.floor(at);
    return [low, Math.min(low + 1, small - 1), at - low];
  });
  const down = between(rows, height), along = between(columns, width);
  return new Float32Array(height * width).map((_, i) => {
    const [top, bottom, v] = down[Math.floor(i / width)], [left, right, u] = along[i % width];
    const upper = values[top * columns + left] * (1 - u) + values[top * columns + right] * u;
    const lower = values[bottom * columns + left] * (1 - u) + values[bottom * columns + right] * u;
    return upper * (1 - v) + lower * v;
  });
}

// Colours of signed maps, safe for the colour-blind: blue below 0, white at 0, red above it.
const mix = (a, b, t) => a.map((x, i) => x + (b[i] - x) * t);
const signed = (x) => (x < 0 ? mix([255, 255, 255], [33, 102, 172], Math.min(1, -x)) : mix([255, 255, 255], [178, 24, 43], Math.min(1, x)));
const grey = (x) => Array(3).fill(limited(255 * x, 0, 255));

// Paint height x width values with a colour function (value -> [r, g, b] or [r, g, b, alpha 0..1]) on a canvas.
function paint(canvas, values, height, width, colour, offset = 0) {
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    const [r, g, b, a = 1] = colour(values[offset + i], i);
    image.data.set([r, g, b, 255 * a], 4 * i);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// The colour [r, g, b] of each pixel of image `n` of a stack packed as uint8 (N, C, H, W), one or three channels.
function pixelsOf({ shape, values }, n) {
  const [channels, height, width] = shape.slice(-3), size = height * width, start = n * channels * size;
  return (i) => [0, 1, 2].map((c) => values[start + (channels === 3 ? c : 0) * size + i]);
}

// One of them painted as it is.
function picture(canvas, stack, n = 0) {
  const [height, width] = stack.shape.slice(-2), at = pixelsOf(stack, n);
  return paint(canvas, stack.values, height, width, (_, i) => at(i));
}

// A line that screen readers speak when it changes.
const spoken = () => h("p", { class: "xw-said", "aria-live": "polite" });

// Offer a text as a file.
function save(name, text, type = "application/json") {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// The frame of a widget: a labelled region. Everything goes inside; `el` is the cell that JupyterLab or the page gives.
function frame(model, el, ...children) {
  el.classList.add("xw");
  el.replaceChildren(h("div", { role: "group", "aria-label": model.get("label"), class: "xw-frame" }, ...children));
}
