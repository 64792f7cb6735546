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

const button = (text, press, attributes = {}) => h("button", { type: "button", onclick: press, ...attributes }, text);

// A labelled slider with its value beside it; `input` hears each change as a number.
function slider(text, { min = 0, max = 1, step = 0.01, value = 0, show = (x) => x.toFixed(2) }, input) {
  const said = h("output", {}, show(value));
  const range = h("input", { type: "range", min: `${min}`, max: `${max}`, step: `${step}`, value: `${value}` });
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
  const select = h("select", { onchange: () => change(select.selectedIndex) }, options.map((one) => h("option", {}, one)));
  select.selectedIndex = chosen;
  return { element: h("label", { class: "xw-choice" }, h("span", {}, text), select), select };
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

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// Colours. Signed maps: blue below 0, white at 0, red above it; unsigned: transparent to orange. Both colour-blind safe.
const mix = (a, b, t) => a.map((x, i) => x + (b[i] - x) * t);
const signed = (x) => (x < 0 ? mix([255, 255, 255], [33, 102, 172], Math.min(1, -x)) : mix([255, 255, 255], [178, 24, 43], Math.min(1, x)));
const heat = (x) => mix([255, 245, 215], [200, 60, 0], Math.max(0, Math.min(1, x)));
const grey = (x) => [255 * x, 255 * x, 255 * x].map((one) => Math.max(0, Math.min(255, one)));

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

// An image packed as uint8 (C, H, W), one or three channels, from position `n` of a stack (N, C, H, W).
function picture(canvas, stack, n = 0) {
  const [channels, height, width] = stack.shape.slice(-3);
  const start = n * channels * height * width, size = height * width;
  const at = (i, c) => stack.values[start + (channels === 3 ? c : 0) * size + i];
  return paint(canvas, stack.values, height, width, (_, i) => [at(i, 0), at(i, 1), at(i, 2)]);
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
