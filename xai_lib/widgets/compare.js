// Compare heatmaps: two methods on one image, with the box that follows a threshold, as `xai_lib.localisation` has it.

// ---------------------------------------------------------------------------------------------------------------------
// From a map to a box and its IoU. Maps are whole numbers, 0 at their minimum and 255 at their maximum.

const TOP = 255;

// The largest (or smallest) value of the 3 x 3 pixels around each one; what lies outside the image does not count.
function around(pixels, height, width, pick) {
  const found = new Uint8Array(pixels.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      let value = pixels[y * width + x];
      for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++) {
        for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
          value = pick(value, pixels[v * width + u]);
        }
      }
      found[y * width + x] = value;
    }
  }
  return found;
}

// What a map has at the threshold or above, closed: dilated, then eroded, so that small gaps are filled.
function kept({ values, height, width }, threshold) {
  const above = Uint8Array.from(values, (one) => (one / TOP >= threshold ? 1 : 0));
  return around(around(above, height, width, Math.max), height, width, Math.min);
}

// The pixels of the component that holds pixel `first`; those that touch at a corner are connected.
function component(pixels, seen, first, height, width) {
  const found = [first];
  seen[first] = 1;
  for (let k = 0; k < found.length; k++) {
    const y = Math.floor(found[k] / width), x = found[k] % width;
    for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++) {
      for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
        const next = v * width + u;
        if (!pixels[next] || seen[next]) continue;
        seen[next] = 1;
        found.push(next);
      }
    }
  }
  return found;
}

// The largest component, of equally large ones the first in reading order.
function largestOf(pixels, height, width) {
  const seen = new Uint8Array(pixels.length);
  let largest = [];
  for (let i = 0; i < pixels.length; i++) {
    if (!pixels[i] || seen[i]) continue;
    const found = component(pixels, seen, i, height, width);
    if (found.length > largest.length) largest = found;
  }
  return largest;
}

// {region, box}: the pixels and [x0, y0, x1, y1] around them, ends exclusive; null for a map of one value.
function located(map, threshold) {
  if (map.flat) return null;
  const region = largestOf(kept(map, threshold), map.height, map.width), box = [Infinity, Infinity, 0, 0];
  for (const i of region) {
    const y = Math.floor(i / map.width), x = i % map.width;
    [box[0], box[1]] = [Math.min(box[0], x), Math.min(box[1], y)];
    [box[2], box[3]] = [Math.max(box[2], x + 1), Math.max(box[3], y + 1)];
  }
  return { region, box };
}

const area = ([x0, y0, x1, y1]) => Math.max(0, x1 - x0) * Math.max(0, y1 - y0);

function iou(one, other) {
  const both = area([0, 1, 2, 3].map((k) => (k < 2 ? Math.max : Math.min)(one[k], other[k])));
  return both / (area(one) + area(other) - both);
}

const THRESHOLDS = Array.from({ length: 99 }, (_, k) => (k + 1) / 100);

// ---------------------------------------------------------------------------------------------------------------------
// Drawing.

// Boxes are drawn over a darker line, so that they are seen on light and dark; the true one is dashed as well.
const COLOURS = { truth: "#ffffff", found: "#ffd500" };
const STROKES = { truth: "5 4", found: "none" };
const SIDES = [ // name, colour, dashes of its curve
  ["Left", "var(--accent)", "none"],
  ["Right", "#c8560a", "6 3"],
];

const STYLE = `
.xw .xw-pair { display: flex; gap: 1rem; }
.xw .xw-pair figure { flex: 1 1 0; min-width: 0; max-width: 24rem; }
.xw .xw-pair .xw-choice { display: flex; flex-direction: column; align-items: stretch; gap: 0.1rem;
  margin-bottom: 0.4rem; }
.xw .xw-pair select { min-width: 0; }
.xw .xw-pair canvas { display: block; width: 100%; border: 0; }
.xw .xw-picture, .xw .xw-scale { position: relative; border: 1px solid var(--line); }
.xw .xw-picture svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.xw .xw-controls { align-items: center; }
.xw .xw-controls .xw-slider > span { min-width: 4.6rem; }
.xw .xw-scale { margin-top: 0.5rem; }
.xw .xw-scale canvas { height: 0.7rem; }
.xw .xw-tick { position: absolute; top: -4px; bottom: -4px; width: 4px; margin-left: -2px; background: var(--ink);
  border: 1px solid var(--ground); box-sizing: border-box; }
.xw .xw-iou { font-weight: 600; margin-top: 0.3rem; }
.xw .xw-pair figcaption { overflow-wrap: anywhere; }
.xw .xw-legend { display: flex; flex-wrap: wrap; gap: 0 1.2rem; margin: 0.5rem 0 0.2rem; }
.xw .xw-legend > span { display: inline-flex; align-items: center; gap: 0.35rem; }
.xw .xw-chart { max-width: 49rem; position: relative; }
.xw .xw-chart > svg { display: block; width: 100%; height: 7rem; box-sizing: border-box;
  border: 1px solid var(--line); }
.xw .xw-one { position: absolute; left: 5px; top: 2px; line-height: 1.2; }`;

const line = (x1, y1, x2, y2, more) => svg("line", { x1, y1, x2, y2, "vector-effect": "non-scaling-stroke", ...more });

// All dark lines come first: where two boxes agree, the dashes of the true one lie on the line of the other.
function boxMarks(boxes) {
  const lines = Object.entries(boxes).map(([kind, [x0, y0, x1, y1]]) => [kind, {
    x: x0, y: y0, width: x1 - x0, height: y1 - y0, fill: "none", "vector-effect": "non-scaling-stroke",
  }]);
  return [
    ...lines.map(([, place]) => svg("rect", { ...place, stroke: "#14181e", "stroke-width": 4 })),
    ...lines.map(([kind, place]) => svg("rect", {
      ...place, stroke: COLOURS[kind], "stroke-width": 2, "stroke-dasharray": STROKES[kind], "data-box": kind,
    })),
  ];
}

const number = (x) => `${+x.toPrecision(2)}`.replace("-", "−");
const share = (x) => (x > 0.995 && x < 1 ? "over 99 %" : `${Math.round(100 * x)} %`);
const score = (found, truth) => (found ? iou(found.box, truth).toFixed(2) : "no box");

// A map's colours: blue below 0, white at 0, red above it, as strong as its own largest magnitude.
function colourOf({ low, high }) {
  const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
  return (level) => signed((low + (level / TOP) * (high - low)) / most);
}

// The image with the map over it; with `inside`, only on those pixels.
function blend(canvas, images, n, map, opacity, inside) {
  const under = pixelsOf(images, n), colour = colourOf(map), only = inside && new Set(inside);
  paint(canvas, map.values, map.height, map.width, (level, i) => (
    only && !only.has(i) ? under(i) : mix(under(i), colour(level), opacity)));
}

// ---------------------------------------------------------------------------------------------------------------------
// One side: the picture, its own range with the threshold marked, and numbers.

function sideOf(name, methods, chosen, change) {
  const method = choice(name, methods, chosen, change);
  const canvas = h("canvas", { role: "img" }), scale = h("canvas", { role: "img" });
  const marks = svg("svg", { "aria-hidden": "true", preserveAspectRatio: "none" });
  const tick = h("div", { "aria-hidden": "true", class: "xw-tick" }), ends = h("div", { class: "xw-quiet xw-ends" });
  const result = h("div", { class: "xw-iou" }), about = h("figcaption");
  const element = h("figure", { role: "group", "aria-label": name }, method.element,
    h("div", { class: "xw-picture" }, canvas, marks), result,
    h("div", { class: "xw-scale" }, scale, tick), ends, about);
  return { element, select: method.select, canvas, marks, scale, tick, ends, result, about };
}

// What the network that the method explains says of the image.
function saying(says, classes, label) {
  if (!says) return "Sees no network.";
  const [top, probability, asked] = says, first = `Network: ${classes[top]} ${share(probability)}`;
  return top === label ? `${first}.` : `${first}, ${classes[label]} ${share(asked)}.`;
}

function showSide(side, { data, images, map, found, truth, n, method, threshold, opacity, only }) {
  const { classes, labels, methods, says } = data, value = map.low + threshold * (map.high - map.low);
  blend(side.canvas, images, n, map, opacity, only ? found?.region ?? [] : null);
  side.canvas.setAttribute("aria-label", `${classes[labels[n]]}, heatmap ${methods[method]}`);
  side.marks.setAttribute("viewBox", `0 0 ${map.width} ${map.height}`);
  side.marks.replaceChildren(...boxMarks({ ...(found && { found: found.box }), truth }));
  paint(side.scale, Float32Array.from({ length: TOP + 1 }, (_, level) => level), 1, TOP + 1, colourOf(map));
  const range = `${number(map.low)} to ${number(map.high)}`;
  side.scale.setAttribute("aria-label", `range of the map: ${range}, threshold at ${number(value)}`);
  side.tick.style.left = `${100 * threshold}%`;
  side.ends.replaceChildren(h("span", {}, number(map.low)), h("span", {}, number(map.high)));
  side.result.textContent = found ? `IoU ${score(found, truth)}` : "No box: the map has one value everywhere";
  side.about.textContent = saying(says[method]?.[n], classes, labels[n]);
}

// ---------------------------------------------------------------------------------------------------------------------
// IoU at every threshold, so that one sees how much the choice of it decides.

const WIDE = 100, TALL = 100; // stretched to the place; strokes and texts are not

function chartOf() {
  const plot = svg("svg", { viewBox: `0 0 ${WIDE} ${TALL}`, preserveAspectRatio: "none", role: "img" });
  const size = { viewBox: "0 0 28 10", width: 28, height: 10, "aria-hidden": "true" };
  const sample = ([, colour, dashes]) => svg("svg", size,
    line(0, 5, 28, 5, { stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dashes }));
  const names = SIDES.map(() => h("span"));
  const legend = h("p", { class: "xw-quiet xw-legend" }, h("strong", {}, "IoU at every threshold"),
    names.map((one, k) => h("span", {}, sample(SIDES[k]), one)));
  const axis = h("div", { class: "xw-quiet xw-ends" }, ["0", "threshold", "1"].map((text) => h("span", {}, text)));
  const one = h("div", { class: "xw-quiet xw-one", "aria-hidden": "true" }, "1");
  return { element: h("div", {}, legend, h("div", { class: "xw-chart" }, plot, one, axis)), plot, names };
}

function showChart(chart, curves, names, threshold) {
  const curve = (values, [side, colour, dashes]) => svg("polyline", {
    points: values.map((y, k) => `${(WIDE * THRESHOLDS[k]).toFixed(1)},${(TALL * (1 - y)).toFixed(3)}`).join(" "),
    fill: "none", stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dashes,
    "vector-effect": "non-scaling-stroke", "data-side": side,
  });
  const guides = [0.25, 0.5, 0.75].map((y) => line(0, TALL * y, WIDE, TALL * y, { stroke: "var(--line)" }));
  const at = line(WIDE * threshold, 0, WIDE * threshold, TALL, { stroke: "var(--ink)", "stroke-width": 1.5 });
  chart.plot.replaceChildren(...guides, ...curves.map((values, k) => curve(values, SIDES[k])), at);
  const told = curves.map((values, k) => {
    const best = Math.max(...values);
    return `${names[k]}: best ${best.toFixed(2)} at ${THRESHOLDS[values.indexOf(best)].toFixed(2)}`;
  });
  told.forEach((text, k) => { chart.names[k].textContent = text; });
  chart.plot.setAttribute("aria-label", `IoU at every threshold. ${told.join("; ")}`);
}

// ---------------------------------------------------------------------------------------------------------------------

// Reads maps as they are asked for; their curves are kept.
function reader(data) {
  const { shape: [, count, height, width], values } = unpack(data.maps), size = height * width, curves = new Map();
  const map = (method, n) => {
    const [low, high] = data.ranges[method][n], start = (method * count + n) * size;
    return { values: values.subarray(start, start + size), height, width, low, high, flat: low === high };
  };
  const curve = (method, n) => {
    const key = method * count + n;
    if (!curves.has(key)) {
      const one = map(method, n);
      curves.set(key, THRESHOLDS.map((t) => (one.flat ? 0 : iou(located(one, t).box, data.boxes[n]))));
    }
    return curves.get(key);
  };
  return { map, curve };
}

// A box's colour and what it is.
const key = (kind, text) => h("span", {},
  svg("svg", { viewBox: "0 0 22 16", width: 22, height: 16, "aria-hidden": "true" },
    ...boxMarks({ [kind]: [2, 2, 20, 14] })), text);

// All controls but the choice of methods; `change` hears what to alter in the state.
function controls(data, state, change) {
  const names = data.labels.map((label, k) => `${k + 1}: ${data.classes[label]}`);
  const image = imageChoice(names, state.n, ["Previous", "Next"], (n) => change({ n }));
  const threshold = slider("Threshold", { min: 0.01, max: 0.99, value: state.threshold },
    (value) => change({ threshold: value }));
  const opacity = slider("Opacity", { value: state.opacity, step: 0.05 }, (value) => change({ opacity: value }));
  const only = button("Boxed region only", () => change({ only: !state.only }));
  const swap = button("Swap", () => change({ pair: state.pair.toReversed() }));
  const row = (...parts) => h("div", { class: "xw-row xw-controls" }, parts);
  return {
    elements: [
      row(...image.elements, swap),
      row(threshold.element, opacity.element, only),
    ],
    show() {
      image.select.selectedIndex = state.n;
      only.setAttribute("aria-pressed", `${state.only}`);
    },
  };
}

export default { render({ model, el }) {
  const data = model.get("data"), images = unpack(data.images), { map, curve } = reader(data);
  const state = { n: 0, pair: [...data.pair], threshold: data.threshold, opacity: 0.6, only: false };

  function show() {
    const { n, pair, threshold } = state, truth = data.boxes[n], names = pair.map((method) => data.methods[method]);
    const scores = pair.map((method, k) => {
      const one = map(method, n), found = located(one, threshold);
      showSide(sides[k], { ...state, data, images, map: one, found, truth, method });
      sides[k].select.selectedIndex = method;
      return `${names[k]} ${score(found, truth)}`;
    });
    showChart(chart, pair.map((method) => curve(method, n)), names, threshold);
    panel.show();
    const asked = `${data.classes[data.labels[n]]}, IoU at threshold ${threshold.toFixed(2)}`;
    said.textContent = `${asked}: ${scores.join(", ")}.`;
  }
  const change = (made) => { Object.assign(state, made); show(); };

  const panel = controls(data, state, change), chart = chartOf(), said = spoken();
  const sides = SIDES.map(([name], k) => sideOf(name, data.methods, state.pair[k],
    (method) => change({ pair: state.pair.map((one, other) => (other === k ? method : one)) })));
  frame(model, el, h("style", {}, STYLE), panel.elements,
    h("div", { class: "xw-pair" }, sides.map((one) => one.element)),
    h("p", { class: "xw-quiet xw-legend" },
      key("truth", "true box"), key("found", "box around the largest region above the threshold")),
    chart.element, said);
  show();
} };
