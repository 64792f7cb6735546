// Concept mixer: the decoder of a concept VAE in plain JavaScript, with a strength for each map of one of its layers.

// ---------------------------------------------------------------------------------------------------------------------
// The decoder: transposed convolutions of 3 x 3 with padding 1, as in torch.

function readLayer(packed) {
  const { weight: { shape: [inputs, outputs], values: weights }, factors, bias, ...rest } = unpacked(packed);
  for (let i = 0; i < weights.length; i++) weights[i] *= factors.values[Math.floor(i / 9) % outputs];
  return { ...rest, inputs, outputs, weights, bias: bias.values };
}

// Add to `sums` what one input map, times `strength`, contributes to all output maps.
function contribute({ outputs, weights, stride, from, to }, maps, channel, strength, sums) {
  if (strength === 0) return;
  const [height, width] = from, [rows, columns] = to;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const value = strength * maps[(channel * height + y) * width + x];
      for (let k = 0; k < 9; k++) {
        const row = y * stride - 1 + Math.floor(k / 3), column = x * stride - 1 + (k % 3);
        if (row < 0 || row >= rows || column < 0 || column >= columns) continue;
        let at = row * columns + column, weight = channel * outputs * 9 + k;
        for (let output = 0; output < outputs; output++, at += rows * columns, weight += 9) {
          sums[at] += value * weights[weight];
        }
      }
    }
  }
}

function weigh(layer, maps, strengths) {
  const size = layer.to[0] * layer.to[1], sums = new Float32Array(layer.outputs * size);
  layer.bias.forEach((one, output) => sums.fill(one, output * size, (output + 1) * size));
  for (let channel = 0; channel < layer.inputs; channel++) {
    contribute(layer, maps, channel, strengths ? strengths[channel] : 1, sums);
  }
  return sums;
}

const bend = ({ slope }, sums) => sums.map((one) => (one < 0 ? slope * one : one));
const through = (layers, maps) => layers.reduce((found, layer) => bend(layer, weigh(layer, found)), maps);
const sigmoid = (logits) => logits.map((one) => 1 / (1 + Math.exp(-one)));

// The maps of layer `at`, and drawings from them. A map that is off changes a sum, so the others are not summed again.
function decoderOf(layers, at) {
  const before = layers.slice(0, at + 1), next = layers[at + 1], after = layers.slice(at + 2);
  const finish = (sums) => sigmoid(through(after, bend(next, sums)));
  return {
    maps: (latent) => through(before, latent),
    drawing: (maps, strengths) => finish(weigh(next, maps, strengths)),
    eachOff(maps, channels) {
      const whole = weigh(next, maps);
      return channels.map((channel) => {
        const sums = whole.slice();
        contribute(next, maps, channel, -1, sums);
        return finish(sums);
      });
    },
  };
}

// ---------------------------------------------------------------------------------------------------------------------
// Numbers: how much ink goes and comes, in shares of the ink that is there when nothing is changed.

function ink(before, after) {
  let all = 0, gone = 0, come = 0;
  for (let i = 0; i < before.length; i++) {
    all += before[i];
    gone += Math.max(0, before[i] - after[i]);
    come += Math.max(0, after[i] - before[i]);
  }
  return { gone: all ? gone / all : 0, come: all ? come / all : 0 };
}

const percent = (share) => (share > 0 && share < 0.01 ? "under 1 %" : `${Math.round(100 * share)} %`);
const signs = ({ gone, come }) => `\u2212${Math.round(100 * gone)} +${Math.round(100 * come)} %`;
const largest = (values) => values.reduce((most, one) => Math.max(most, Math.abs(one)), 1e-9);
const paper = (x) => grey(1 - x); // ink is dark, as in the book's figures

// ---------------------------------------------------------------------------------------------------------------------
// Parts of the page.

const named = ({ digit, place }) => `${place} part of ${digit}`;

function drawingOf(text, label) {
  const canvas = h("canvas", { role: "img", "aria-label": label, style: "width: 100%; display: block" });
  const caption = h("figcaption", {}, text);
  return { canvas, caption, element: h("figure", { style: "flex: 0 1 226px; min-width: 0" }, canvas, caption) };
}

function endOf(text, names, chosen, change) {
  const canvas = h("canvas", { role: "img", style: "width: 42px; height: 42px; flex: none" });
  const { element, select } = choice(text, names, chosen, change);
  const box = h("div", { style: "display: inline-flex; gap: 0.5rem; align-items: center" }, element, canvas);
  return { canvas, select, element: box };
}

// A map as a switch: its picture, the concept that it was trained on, and how much ink goes and comes without it.
function tileOf(concept, press) {
  const canvas = h("canvas", { role: "img", "aria-label": `map ${concept.map}`, style: "width: 44px; border: 0" });
  const share = h("span", { style: "font-variant-numeric: tabular-nums" });
  const text = h("span", {}, `${concept.digit} ${concept.place}`);
  const style = "display: flex; flex-direction: column; align-items: center; gap: 0.1rem; padding: 0.3rem 0.15rem;"
    + "font-size: 0.75rem; font-weight: normal; line-height: 1.2; min-width: 0";
  const element = button("", press, { style, "data-map": `${concept.map}` });
  element.replaceChildren(canvas, text, share);
  return {
    canvas,
    element,
    show(strength, isChosen, alone) {
      const on = strength > 0;
      element.setAttribute("aria-pressed", `${on}`);
      element.style.borderStyle = on ? "solid" : "dashed";
      element.style.borderColor = isChosen ? "var(--accent)" : "var(--line)";
      element.style.boxShadow = isChosen ? "inset 0 0 0 1px var(--accent)" : "none";
      text.style.textDecoration = on ? "none" : "line-through";
      canvas.style.opacity = on ? "1" : "0.3";
      share.textContent = signs(alone);
    },
  };
}

// ---------------------------------------------------------------------------------------------------------------------

function render({ model, el }) {
  const data = model.get("data"), { concepts, names } = data;
  const layers = data.layers.map(readLayer), decoder = decoderOf(layers, data.at);
  const { values: latents, shape: [, size] } = unpack(data.latents), images = unpack(data.images);
  const [height, width] = layers[data.at].to, [rows, columns] = layers.at(-1).to;
  const channels = concepts.map((one) => one.map);
  const further = [...Array(layers[data.at].outputs).keys()].filter((one) => !channels.includes(one));

  const state = { from: names.length > 3 ? 3 : 0, to: names.length > 8 ? 8 : 1, walk: 0, chosen: 0 };
  const strengths = new Float32Array(layers[data.at].outputs).fill(1);
  let maps, whole, alone;

  // What only the latent image decides.
  function walked() {
    const [from, to] = [state.from, state.to].map((n) => latents.subarray(n * size, (n + 1) * size));
    maps = decoder.maps(from.map((one, i) => one + (to[i] - one) * state.walk));
    whole = decoder.drawing(maps);
    alone = decoder.eachOff(maps, channels).map((one) => ink(whole, one));
    const few = alone.filter(({ gone, come }) => Math.max(gone, come) < 0.01).length;
    note.textContent = "Under each map: ink that disappears and new ink when this map alone is off and all others "
      + `are at strength 1, in shares of the drawing's ink. Both are under 1 % for ${few} of ${concepts.length} maps.`;
    mixed();
  }

  function mixed() {
    const now = decoder.drawing(maps, strengths);
    paint(drawing.canvas, now, rows, columns, paper);
    showChange(now.map((one, i) => one - whole[i]));
    showEnds();
    showTiles();
    say(ink(whole, now));
  }

  // On a scale of its own, as most changes are faint; the caption says how far it reaches.
  function showChange(difference) {
    const most = Math.max(0.02, largest(difference));
    paint(change.canvas, difference, rows, columns, (x) => signed(x / most));
    change.caption.textContent = `change, ±${most.toFixed(2)}: blue gone, red new`;
  }

  function showEnds() {
    for (const [end, n] of [[from, state.from], [to, state.to]]) {
      paint(end.canvas, images.values, rows, columns, (x) => paper(x / 255), n * rows * columns);
      end.canvas.setAttribute("aria-label", `test image of ${names[n]}`);
    }
  }

  function showTiles() {
    const extent = height * width;
    const most = largest(channels.map((one) => largest(maps.subarray(one * extent, (one + 1) * extent))));
    tiles.forEach((tile, k) => {
      const strength = strengths[channels[k]], seen = strength || 1;
      paint(tile.canvas, maps, height, width, (x) => signed((seen * x) / most), channels[k] * extent);
      tile.show(strength, k === state.chosen, alone[k]);
    });
    chosen.select.selectedIndex = state.chosen;
    strength.set(strengths[channels[state.chosen]]);
    others.setAttribute("aria-pressed", `${further.some((one) => strengths[one] > 0)}`);
  }

  function say({ gone, come }) {
    const on = channels.filter((one) => strengths[one] > 0).length;
    const rest = further.length && !further.some((one) => strengths[one] > 0) ? ", the further maps off" : "";
    said.textContent = strengths.every((one) => one === 1)
      ? "Nothing is changed: the drawing is the network's own."
      : `${on} of ${channels.length} maps on${rest}: ${percent(gone)} of the ink is gone, new ink is ${percent(come)}.`;
  }

  const then = (work) => () => { work(); mixed(); };
  const set = (of, value) => of.forEach((one) => { strengths[one] = value; });
  const press = (k) => then(() => {
    state.chosen = k;
    strengths[channels[k]] = strengths[channels[k]] > 0 ? 0 : 1;
  });
  const only = then(() => {
    const kept = strengths[channels[state.chosen]] || 1;
    strengths.fill(0);
    strengths[channels[state.chosen]] = kept;
  });

  const from = endOf("From", names, state.from, (n) => { state.from = n; walked(); });
  const to = endOf("to", names, state.to, (n) => { state.to = n; walked(); });
  const walk = slider("Walk", { show: percent }, (share) => { state.walk = share; walked(); });
  const drawing = drawingOf("drawing, 0 to 1", "what the decoder draws");
  const change = drawingOf("", "difference to the unchanged drawing");
  const said = spoken(), note = h("p", { class: "xw-quiet", style: "margin: 0.4rem 0 0.8rem" });
  const tiles = concepts.map((one, k) => tileOf(one, press(k)));
  const titles = concepts.map((one) => `${one.map}: ${named(one)}`);
  const chosen = choice("Map", titles, 0, (k) => { state.chosen = k; showTiles(); });
  const strength = slider("Strength", { max: 2, step: 0.05, value: 1 }, (value) => {
    strengths[channels[state.chosen]] = value;
    mixed();
  });
  const others = button(`${further.length} further maps`, then(() => {
    set(further, further.some((one) => strengths[one] > 0) ? 0 : 1);
  }), { hidden: !further.length });
  const grid = "display: grid; gap: 6px; margin-top: 0.5rem;"
    + "grid-template-columns: repeat(auto-fill, minmax(max(66px, 10%), 1fr))";

  frame(model, el,
    h("div", { class: "xw-row", style: "align-items: center" }, from.element, to.element, walk.element),
    h("div", { class: "xw-row", style: "flex-wrap: nowrap; margin: 0" }, drawing.element, change.element),
    said,
    h("div", { role: "group", "aria-label": "maps on and off", style: grid }, tiles.map((one) => one.element)),
    note,
    h("div", { class: "xw-row", style: "align-items: center" }, chosen.element, strength.element),
    h("div", { class: "xw-row" },
      button("Only this map", only), button("All off", then(() => strengths.fill(0))),
      button("Reset", then(() => strengths.fill(1))), others));
  walked();
}

export default { render };
