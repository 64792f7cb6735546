// Draw a digit: each stroke is prepared as MNIST's digits were and read by XCNN, here and at once.

const SIDE = 140; // of the drawing surface, in units; twice that in pixels of the page
const PEN = 6; // radius of the pen in units
const FIELD = 28, BOX = 20; // pixels that the network sees, and that the ink fills of them
const total = (values) => values.reduce((a, b) => a + b, 0);
const blank = () => new Uint8Array(SIDE * SIDE);

// ---- The network. What goes from layer to layer is {values: Float32Array, shape: [channels, height, width]}.

function convolution({ values, shape: [channels, height, width] }, { weight, bias, padding }) {
  const [count, , rows, columns] = weight.shape, high = height + 2 * padding, wide = width + 2 * padding;
  const padded = new Float32Array(channels * high * wide);
  for (let c = 0; c < channels; c++) {
    for (let y = 0, from = c * height * width; y < height; y++, from += width) {
      padded.set(values.subarray(from, from + width), (c * high + y + padding) * wide + padding);
    }
  }
  const shape = [count, high - rows + 1, wide - columns + 1], area = shape[1] * shape[2];
  const out = new Float32Array(count * area), starts = []; // where each weight of a kernel begins to read
  for (let c = 0; c < channels; c++) {
    for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) starts.push((c * high + i) * wide + j);
  }
  for (let o = 0; o < count; o++) {
    const plane = out.subarray(o * area, (o + 1) * area).fill(bias.values[o]);
    starts.forEach((start, k) => {
      const factor = weight.values[o * starts.length + k];
      for (let y = 0, from = start, to = 0; y < shape[1]; y++, from += wide, to += shape[2]) {
        for (let x = 0; x < shape[2]; x++) plane[to + x] += factor * padded[from + x];
      }
    });
  }
  return { values: out, shape };
}

// `join` makes one number of each square; an odd last row or column is dropped, as in torch.
function pooling({ values, shape: [channels, height, width] }, side, join) {
  const high = Math.floor(height / side), wide = Math.floor(width / side);
  const out = new Float32Array(channels * high * wide).map((_, i) => {
    const row = Math.floor(i / wide), top = Math.floor(row / high) * height + (row % high) * side;
    const square = [], first = top * width + (i % wide) * side;
    for (let k = 0; k < side * side; k++) square.push(values[first + Math.floor(k / side) * width + (k % side)]);
    return join(square);
  });
  return { values: out, shape: [channels, high, wide] };
}

// Bilinear, corners aligned: pixel k of the larger side lies at k (small - 1) / (large - 1) of the smaller one.
function upsampling({ values, shape: [channels, height, width] }, high, wide) {
  const out = new Float32Array(channels * high * wide), aligned = (k, small, large) => (k * (small - 1)) / (large - 1);
  for (let c = 0; c < channels; c++) {
    const map = values.subarray(c * height * width, (c + 1) * height * width);
    out.set(stretched(map, [height, width], [high, wide], aligned), c * high * wide);
  }
  return { values: out, shape: [channels, high, wide] };
}

function linear({ values }, { weight, bias }) {
  const out = Float32Array.from(bias.values), w = weight.values, count = values.length;
  for (let o = 0; o < out.length; o++) for (let i = 0; i < count; i++) out[o] += w[o * count + i] * values[i];
  return { values: out, shape: [out.length, 1, 1] };
}
const each = ({ values, shape }, change) => ({ values: values.map(change), shape });

// The types that `layers` of digit.py names.
const LAYERS = {
  convolution,
  linear,
  relu: (x) => each(x, (one) => Math.max(0, one)),
  tanh: (x) => each(x, Math.tanh),
  maximum: (x, { side }) => pooling(x, side, (square) => Math.max(...square)),
  mean: (x, { side }) => pooling(x, side, (square) => total(square) / square.length),
  upsampling: (x) => upsampling(x, FIELD, FIELD),
  flatten: (x) => x, // channels, rows, columns: the order in memory is torch's already
};
const run = (layers, x) => layers.reduce((before, layer) => LAYERS[layer.type](before, layer), x);

function softmax(logits) {
  const top = Math.max(...logits), shares = Float64Array.from(logits, (one) => Math.exp(one - top));
  return shares.map((one) => one / total(shares));
}

// What Python handed over, as a function of 28x28 pixels (0 to 255): {map: I(x), chances: one for each class}.
function network({ generator, discriminator, mean, std }) {
  const [first, second] = [generator, discriminator].map((layers) => layers.map(unpacked));
  return (pixels) => {
    const values = Float32Array.from(pixels, (one) => (one / 255 - mean) / std);
    const map = run(first, { values, shape: [1, FIELD, FIELD] });
    return { map: map.values, chances: softmax(run(second, map).values) };
  };
}

// ---- From ink to pixels

// The ink between two places of the pen, its edge smooth over one unit.
function line(ink, from, to) {
  const dx = to.x - from.x, dy = to.y - from.y, length = dx * dx + dy * dy || 1;
  ink.forEach((before, i) => {
    const u = (i % SIDE) + 0.5 - from.x, v = Math.floor(i / SIDE) + 0.5 - from.y;
    const along = limited((u * dx + v * dy) / length, 0, 1), distance = Math.hypot(u - along * dx, v - along * dy);
    ink[i] = Math.max(before, Math.round(255 * limited(PEN + 0.5 - distance, 0, 1)));
  });
}

// Pixels of a digit, laid on the surface as squares of ink.
function enlarged(pixels) {
  const ink = blank(), size = SIDE / FIELD;
  return ink.map((_, i) => pixels[Math.floor(i / SIDE / size) * FIELD + Math.floor((i % SIDE) / size)]);
}

// Where ink is, and its centre of mass, along one side: {low, high, centre}; null on an empty page.
function extent(ink, index) {
  const sums = new Float64Array(SIDE);
  ink.forEach((one, i) => (sums[index(i)] += one));
  const low = sums.findIndex((one) => one > 0), high = sums.findLastIndex((one) => one > 0) + 1;
  return high ? { low, high, centre: total(sums.map((one, i) => one * (i + 0.5))) / total(sums) } : null;
}

// For each pixel of the field, the units that it covers and how much each counts for its mean.
const spans = (scale, start) => Array.from({ length: FIELD }, (_, k) => {
  const from = (k - start) / scale, to = (k + 1 - start) / scale, found = [];
  for (let s = Math.max(0, Math.floor(from)); s < Math.min(SIDE, Math.ceil(to)); s++) {
    found.push([s, (Math.min(to, s + 1) - Math.max(from, s)) * scale]);
  }
  return found;
});

// As MNIST was made: the longer side of the ink's box scaled to 20 pixels, means over areas, then moved by whole pixels
// until the centre of mass lies between 14 and 15 pixels from the field's left and upper edge, as in MNIST's files.
// A unit s of the surface lies at `s scale + left` (or top) of the field.
function prepared(ink) {
  const across = extent(ink, (i) => i % SIDE), along = extent(ink, (i) => Math.floor(i / SIDE));
  if (!across) return { pixels: new Uint8Array(FIELD * FIELD), scale: FIELD / SIDE, left: 0, top: 0 };
  const scale = BOX / Math.max(across.high - across.low, along.high - along.low), small = 1e-6; // rounding of floats
  const [left, top] = [across, along].map(({ low, high, centre }) => {
    const room = FIELD - Math.ceil((high - low) * scale - small);
    return limited(Math.ceil(FIELD / 2 - (centre - low) * scale - small), 0, room) - low * scale;
  });
  const columns = spans(scale, left), pixels = new Uint8Array(FIELD * FIELD);
  spans(scale, top).forEach((rows, y) => {
    const sums = new Float64Array(SIDE);
    for (const [s, share] of rows) for (let x = 0; x < SIDE; x++) sums[x] += share * ink[s * SIDE + x];
    const means = columns.map((units) => units.reduce((a, [s, share]) => a + share * sums[s], 0));
    pixels.set(means.map(Math.round), y * FIELD);
  });
  return { pixels, scale, left, top };
}

// ---- What is seen

const best = (values) => values.indexOf(Math.max(...values));
const percent = (x) => `${(100 * x).toFixed(1)} %`;
const points = (x) => withSign(100 * x, 1);
const gained = (after, before) => after.chances.map((one, k) => one - before.chances[k]);

// The surface: ink over the network's map, the frame of what it sees, and the pen where keys move it.
function paintSurface(canvas, { ink, map, scale, left, top }, sign, pen) {
  const white = [255, 255, 255], colours = Array.from(map, (one) => mix(white, signed(sign * one), 0.75));
  const place = (s, start) => Math.floor((s + 0.5) * scale + start);
  paint(canvas, ink, SIDE, SIDE, (value, i) => {
    const x = place(i % SIDE, left), y = place(Math.floor(i / SIDE), top);
    const ground = x >= 0 && x < FIELD && y >= 0 && y < FIELD ? colours[y * FIELD + x] : white;
    return value ? mix(ground, [20, 20, 20], (0.7 * value) / 255) : ground;
  });
  const context = canvas.getContext("2d");
  context.strokeStyle = "#777";
  context.setLineDash([3, 3]);
  context.strokeRect(-left / scale, -top / scale, FIELD / scale, FIELD / scale);
  if (!pen.shown) return;
  context.strokeStyle = pen.down ? "#b2182b" : "#2166ac";
  context.setLineDash(pen.down ? [] : [2, 2]);
  context.lineWidth = 2;
  context.strokeRect(pen.x - PEN, pen.y - PEN, 2 * PEN, 2 * PEN);
}

// A row for each class: its probability as a bar and in numbers, and what the stroke changed.
function bars(classes) {
  const right = { class: "xw-number" };
  const rows = classes.map((name) => {
    const bar = h("div", { style: "height: 0.7rem; background: var(--accent); border-radius: 2px" });
    const chance = h("td", right), gain = h("td", right);
    const row = h("tr", {}, h("th", { scope: "row" }, name),
      h("td", { style: "width: 50%; vertical-align: middle" }, bar), chance, gain);
    return { row, bar, chance, gain };
  });
  const heads = [["Class", { colspan: "2" }], ["Probability", right], ["Change", right]];
  const element = h("table", { style: "width: 100%; margin: 0" },
    h("tr", {}, heads.map(([text, more]) => h("th", { scope: "col", ...more }, text))), rows.map(({ row }) => row));
  const show = (chances, gains) => rows.forEach(({ row, bar, chance, gain }, k) => {
    row.style.fontWeight = k === best(chances) ? "700" : "";
    bar.style.width = `${100 * chances[k]}%`;
    chance.textContent = percent(chances[k]);
    gain.textContent = gains ? points(gains[k]) : "";
  });
  return { element, show };
}

function screen(caption, about, width, style = "", more = {}) {
  const looks = `width: ${width}px; aspect-ratio: 1; ${style}`;
  const canvas = h("canvas", { role: "img", "aria-label": about, style: looks, ...more });
  return { canvas, element: h("figure", {}, canvas, h("figcaption", {}, caption)) };
}

// ---- Mouse, touch and keys, as `start(place)`, `move(place)`, `end()`; `pen` is where keys have moved it

function listenToPointer(canvas, pen, { start, move, end }) {
  const place = (event) => ({
    x: (event.offsetX / canvas.clientWidth) * SIDE, y: (event.offsetY / canvas.clientHeight) * SIDE,
  });
  canvas.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary || event.button || pen.down) return;
    canvas.setPointerCapture(event.pointerId);
    pen.shown = false;
    start(place(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) move(place(event));
  });
  canvas.addEventListener("lostpointercapture", end);
}

const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
function listenToKeys(canvas, pen, { start, move, end, look }) {
  const held = new Set(); // two arrows at once go along the diagonal
  const lower = (down) => {
    if (down !== pen.down) (down ? start : end)({ ...pen });
    pen.down = down;
  };
  const step = (size) => {
    for (const [x, y] of [...held].map((key) => WAYS[key])) {
      [pen.x, pen.y] = [limited(pen.x + size * x, 0, SIDE), limited(pen.y + size * y, 0, SIDE)];
    }
    if (pen.down) move({ ...pen });
  };
  canvas.addEventListener("keydown", (event) => {
    const { key, ctrlKey, metaKey, altKey } = event;
    if (ctrlKey || metaKey || altKey || !(key in WAYS || key === " ")) return;
    event.preventDefault(); // or the page would scroll
    pen.shown = true;
    if (key in WAYS) step(event.shiftKey ? 1 : 5, held.add(key));
    else if (!event.repeat) lower(!pen.down);
    look();
  });
  canvas.addEventListener("keyup", ({ key }) => held.delete(key));
  canvas.addEventListener("blur", () => {
    held.clear();
    lower(false);
    pen.shown = false;
    look();
  });
}

// What becomes of the drawing: `steps` with their ink, pixels, map and probabilities, shown as far as `at`, and the ink
// of the stroke that is being drawn. `changed(steps, at)` is told of a step, `moved()` of the stroke, once a frame.
function history(read, changed, moved) {
  const judged = (ink, name, exact) => {
    const found = prepared(ink), pixels = exact ?? found.pixels;
    return { ink, name, ...found, pixels, ...read(pixels) };
  };
  let steps = [], at = 0, ink = null, last, waiting = false;
  const go = (k) => changed(steps, (at = k));
  const move = (place) => {
    if (!ink) return; // another hand has ended it
    line(ink, last, place);
    last = place;
    if (!waiting) requestAnimationFrame(() => moved((waiting = false)));
    waiting = true;
  };
  const start = (place) => {
    ink ??= Uint8Array.from(steps[at].ink);
    move((last = place));
  };
  const end = () => { // steps after the one that was gone back to are dropped
    if (ink) steps = [...steps.slice(0, at + 1), judged(ink, `Stroke ${at + 1}`)];
    ink = null;
    go(steps.length - 1);
  };
  const restart = (...first) => {
    steps = [judged(blank(), "Empty page"), ...first.map((one) => judged(...one))];
    go(first.length);
  };
  const now = () => (ink ? [judged(ink), steps[at]] : [steps[at], steps[at - 1]]); // and what was before it
  return { go, move, start, end, restart, now };
}

function sentence({ name, chances }, gains, classes) {
  const result = `${classes[best(chances)]} (${percent(Math.max(...chances))})`;
  if (!gains) return `Nothing is drawn; the network reads ${result} into an empty page.`;
  const said = (k) => `${classes[k]} (${points(gains[k])} points)`, least = best(gains.map((one) => -one));
  const still = Math.max(...gains) < 5e-4, change = `Gained most: ${said(best(gains))}; lost most: ${said(least)}.`;
  return `${name}: read as ${result}. ${still ? "No probability changed." : change}`;
}

const KEYS = "Arrow keys move the pen, with shift in small steps; space lowers or lifts it.";
function render({ model, el }) {
  const data = model.get("data"), samples = unpack(data.samples), { classes, labels, sign } = data;
  const pen = { x: SIDE / 2, y: SIDE / 4, down: false, shown: false };
  const surface = screen("Draw here, by mouse, finger or keys", `Drawing surface. ${KEYS}`, 284,
    "touch-action: none; cursor: crosshair; image-rendering: auto",
    { role: "application", tabindex: "0", "data-lm-suppress-shortcuts": "true" });
  const seen = screen("The network sees", "What the network sees, 28 by 28 pixels", 136);
  const map = screen("Its heatmap", "Heatmap: red above 0, blue below", 136);
  const table = bars(classes), answer = h("strong", { style: "font-size: 1.6rem" }), said = spoken();
  let sample = -1, count = 0, example = true; // what stands there at first, so that there is something to see
  const back = slider("After stroke", { max: 0, step: 1, show: (k) => `${k} of ${count}` }, (k) => drawing.go(k));
  const look = () => {
    const begun = performance.now(), [step, before] = drawing.now();
    paintSurface(surface.canvas, step, sign, pen);
    paint(seen.canvas, step.pixels, FIELD, FIELD, (one) => grey(1 - one / 255));
    paint(map.canvas, step.map, FIELD, FIELD, (one) => signed(sign * one));
    table.show(step.chances, before && gained(step, before));
    answer.textContent = classes[best(step.chances)];
    surface.canvas.dataset.milliseconds = performance.now() - begun; // all of it: ink to pixels, network, pictures
  };
  const drawing = history(network(data), (steps, at) => {
    back.range.max = count = steps.length - 1;
    back.range.disabled = !count;
    back.set(at);
    said.textContent = sentence(steps[at], at && gained(steps[at], steps[at - 1]), classes);
    look();
  }, look);
  const next = () => {
    sample = (sample + 1) % labels.length;
    const pixels = samples.values.slice(sample * FIELD * FIELD, (sample + 1) * FIELD * FIELD);
    drawing.restart([enlarged(pixels), `A real test digit, a ${classes[labels[sample]]}`, pixels]);
  };
  const start = (place) => {
    if (example) drawing.restart();
    example = false;
    drawing.start(place);
  };
  const row = (attributes, ...parts) => h("div", { class: "xw-row", ...attributes }, parts);
  const pictures = row({ style: "flex: 0 1 286px; gap: 0.4rem 8px" }, surface.element, seen.element, map.element);
  const result = h("div", { style: "flex: 1 1 15rem" }, "Read as ", answer, table.element, said);
  const clear = button("Clear", () => drawing.restart()), fill = button("Sample digit", () => next((example = false)));
  frame(model, el, row({ style: "align-items: center" }, clear, fill, back.element), row({}, pictures, result),
    h("p", { class: "xw-quiet", style: "margin: 0" }, KEYS));
  listenToPointer(surface.canvas, pen, { ...drawing, start });
  listenToKeys(surface.canvas, pen, { ...drawing, start, look });
  next();
}
export { network, prepared, enlarged };
export default { render };
