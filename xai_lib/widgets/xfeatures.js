// x-feature explorer: one image's logit as a sum of x-features, one x-feature over many images, and what readers make of
// them: names, votes, and predictions without those that nobody trusts. Every number follows from packed E, v and logits.

const FORMAT = "x-feature votes", VERSION = 1, CHOICES = ["trust", "distrust"];
const MOST = { bytes: 1e6, letters: 60, voters: 100, thumbs: 12 };
const ODD = /[\p{Cc}\p{Cs}\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu; // control, half pairs, marks that turn a text around
const POSITIVE = "#d6604d", NEGATIVE = "#4393c3", QUIET = "#8a8a8a"; // told apart without colour vision, in light and dark
const FIELD = { type: "text", maxlength: `${MOST.letters}`, size: 14, style: "box-sizing:border-box;flex:0 1 18rem" };

// Votes: what comes from outside is checked field by field, and built anew (votes.py does the same).
function need(good, what) { if (!good) throw new Error(what); }
const whole = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const cut = (text, most) => [...text].slice(0, most).join("");
const clean = (text) => cut(text.replace(ODD, "").trim(), MOST.letters);
const short = (value) => cut(`${JSON.stringify(value)}`.replace(ODD, ""), 40);
const alike = (text) => text.normalize("NFC").trim().toLowerCase(); // "Ada" and "ada " are one voter

function fields(value, what, names) {
  need(whole(value), `${what} is no object: ${short(value)}`);
  for (const name of Object.keys(value)) need(names.includes(name), `${what} has an unknown field ${short(name)}`);
  for (const name of names) need(Object.hasOwn(value, name), `${what} has no field "${name}"`);
  return value;
}

function words(value, what) {
  need(typeof value === "string", `${what} is no text: ${short(value)}`);
  need([...value].length <= MOST.letters, `${what} is longer than ${MOST.letters} letters: ${short(value)}`);
  need(value.search(ODD) < 0, `${what} holds control characters: ${short(value)}`);
  return value;
}

// One voter's file as a new object, or an error that says in a line what is wrong.
function checked(given, study, own = false) {
  need(whole(given) && given.format === FORMAT, `it is no file of ${FORMAT}`);
  need(given.version === VERSION, `version is ${short(given.version)}, this explorer reads ${VERSION}`);
  const { module, voter, features } = fields(given, "the file", ["format", "version", "module", "voter", "features"]);
  need(module === study.module, `module is ${short(module)}, these x-features are of "${study.module}"`);
  need(alike(words(voter, "voter")) || own, "voter is empty");
  need(Array.isArray(features), `features is no list: ${short(features)}`);
  const seen = new Set();
  const votes = features.map((one, at) => {
    const what = `features[${at}]`;
    const { category, feature, name, vote } = fields(one, what, ["category", "feature", "name", "vote"]);
    need(study.names.includes(category), `${what}: there is no category ${short(category)}`);
    need(Number.isInteger(feature) && feature >= 1 && feature <= study.n, `${what}: there is no x-feature ${short(feature)}`);
    need(!seen.has(`${category} ${feature}`), `${what}: x-feature ${feature} of ${short(category)} comes twice`);
    need(vote === null || CHOICES.includes(vote), `${what}: vote is ${short(vote)}, not trust, distrust or null`);
    seen.add(`${category} ${feature}`);
    return { category, feature, name: words(name, `${what}: name`), vote };
  });
  return { format: FORMAT, version: VERSION, module, voter, features: votes };
}

// The voters with one more. A second file of a voter is refused: which of the two counts is for people to say.
function joined(voters, file) {
  need(voters.length < MOST.voters, `there are ${MOST.voters} voters already`);
  need(!voters.some((one) => alike(one.voter) === alike(file.voter)), `votes of ${short(file.voter)} are here already`);
  return [...voters, file];
}

// What readers made of it lives in the trait `kept`: the reader's own file, those of other voters, and, aside, what was
// kept before and does not fit these x-features; that is never thrown away unasked.
function keeping(model, study) {
  const empty = { format: FORMAT, version: VERSION, module: study.module, voter: "", features: [] };
  const read = (kept) => {
    try {
      const { others = [], aside = [], ...own } = kept;
      need(Array.isArray(others) && Array.isArray(aside), "others and aside are lists");
      const voters = others.reduce((all, one) => joined(all, checked(one, study)), []);
      return { own: checked({ ...empty, ...own }, study, true), others: voters, aside, why: "" };
    } catch (error) {
      return { own: empty, others: [], aside: [kept], why: error.message };
    }
  };
  let seen, now; // read again only where the trait is another object
  const get = () => (model.get("kept") === seen ? now : (now = read((seen = model.get("kept")))));
  const write = (change) => {
    const { own, others, aside } = { ...get(), ...change };
    model.set("kept", { ...own, others, aside });
    model.save_changes();
  };
  const find = ({ features }, k, j) => features.find((one) => one.category === study.names[k] && one.feature === j + 1);
  const of = (k, j) => find(get().own, k, j) ?? { category: study.names[k], feature: j + 1, name: "", vote: null };
  const mark = (k, j, change) => {
    const { own } = get(), next = { ...of(k, j), ...change }, rest = own.features.filter((one) => one !== find(own, k, j));
    write({ own: { ...own, features: next.name || next.vote ? [...rest, next] : rest } });
  };
  const tally = (k, j) => {
    const said = [get().own, ...get().others].map((one) => find(one, k, j)).filter(Boolean);
    const [trust, distrust] = CHOICES.map((vote) => said.filter((one) => one.vote === vote).length);
    return { trust, distrust, names: said.map((one) => one.name).filter(Boolean) };
  };
  return { get, write, mark, of, tally };
}

// Sums: C categories k, N images i, n x-features j; `on` says which x-features count.
function opened(data) {
  const { images, maps, activations: e, weights: v, logits, rivals } = unpacked(data);
  const [C, N, n] = e.shape, all = [...Array(N).keys()];
  const study = {
    C, N, n, all, images, maps, module: data.module, truth: data.truth, classes: data.classes,
    names: data.categories.map((one) => data.classes[one]),
    weight: (k, j) => v.values[k * n + j], activation: (k, i, j) => e.values[(k * N + i) * n + j],
    term: (k, i, j) => study.weight(k, j) * study.activation(k, i, j),
    logit: (k, i, on) => on.reduce((sum, counts, j) => sum + (counts ? study.term(k, i, j) : 0), 0),
    network: (k, i) => logits.values[k * N + i],
    rival: (k, i) => rivals.values[k * N + i], rivalName: (k, i) => data.classes[data.rival_of[k][i]], // the largest other logit
    own: (k, i) => data.truth[i] === data.categories[k], first: (k) => Math.max(0, data.truth.indexOf(data.categories[k])),
    shown: (i) => `image ${i + 1}, ${data.classes[data.truth[i]]}`,
  };
  // What logits of a category decide: an image is of it where its logit is above that of all other classes.
  study.decisions = (k, logit) => {
    const says = all.map((i) => logit(i) > study.rival(k, i)), own = all.map((i) => study.own(k, i));
    const count = (keep) => all.filter(keep).length;
    return { says, own: count((i) => own[i]), right: count((i) => says[i] === own[i]), found: count((i) => says[i] && own[i]),
      taken: count((i) => says[i] && !own[i]), apart: all.reduce((sum, i) => sum + Math.abs(logit(i) - study.network(k, i)), 0) / N };
  };
  study.decided = (k, on) => study.decisions(k, (i) => study.logit(k, i, on));
  return study;
}

const exact = (x) => h("data", { value: `${x}` }, withSign(x)); // what is shown rounded can be read in full

// An image lit by a map: in its own colours where the map is, pale elsewhere.
function lit(canvas, { images, maps, N, n }, k, i, j) {
  const sides = images.shape.slice(-2), [rows, columns] = maps.shape.slice(-2), own = pixelsOf(images, i);
  const map = maps.values.subarray(((k * N + i) * n + j) * rows * columns); // it begins there
  const light = stretched(map, [rows, columns], sides, (p, small, large) => ((p + 0.5) * small) / large - 0.5);
  paint(canvas, light, ...sides, (x, p) => {
    const [r, g, b] = own(p), pale = 190 + 0.25 * (0.299 * r + 0.587 * g + 0.114 * b);
    return mix([pale, pale, pale], [r, g, b], Math.sqrt(x / 255));
  });
}

// A bar on an axis that all bars share; it begins where the one above it ends.
function track() {
  const bar = h("div"), zero = h("div", { class: "xw-zero" });
  const set = (from, to, [low, high], colour, counts = true) => {
    const share = (x) => `${(100 * x) / (high - low || 1)}%`;
    [bar.style.left, bar.style.width, zero.style.left] = [Math.min(from, to) - low, Math.abs(to - from), -low].map(share);
    bar.style.border = `1px ${counts ? "solid" : "dashed"} ${colour}`;
    bar.style.background = counts ? colour : "none";
    bar.hidden = from === to;
  };
  return { element: h("div", { class: "xw-track", "aria-hidden": "true" }, bar, zero), set };
}

const part = (title, ...children) => h("div", { role: "group", "aria-label": title, style: "margin-top:1.2rem" },
  h("p", { style: "font-weight:600;margin:0 0 0.4rem" }, title), ...children);

// Parts of the page: each is {element, draw}. Elements stay and only what they say changes, so that focus is never lost.
function chooser({ study, at, act }) {
  const pick = (i) => act(() => (at.i = i), () => `Now ${study.shown(i)}.`);
  const go = (k) => act(() => Object.assign(at, { k, i: study.first(k), j: 0, all: false }), () => `Category ${study.names[k]}.`);
  const names = study.truth.map((one, i) => `${i + 1}: ${study.classes[one]}`);
  const image = imageChoice(names, at.i, ["previous image", "next image"], pick);
  const element = h("div", { class: "xw-row" }, choice("Category", study.names, 0, go).element, image.elements);
  return { element, draw: () => (image.select.selectedIndex = at.i) };
}

function feature({ study, at, kept, act, change }, j) {
  const which = `x-feature ${j + 1}`, map = h("canvas", { role: "img", style: "width:5rem;height:5rem" });
  const title = h("strong"), sum = h("span"), bar = track();
  const rename = () => act(() => kept.mark(at.k, j, { name: (name.value = clean(name.value)) }), () => "Name kept.");
  const name = h("input", { ...FIELD, onchange: rename, placeholder: "name it", "aria-label": `name of ${which}` });
  const votes = CHOICES.map((vote) => button(vote, () => {
    const next = kept.of(at.k, j).vote === vote ? null : vote;
    act(() => kept.mark(at.k, j, { vote: next }), () => `${which}: ${next ?? "no vote"}.`);
  }, { "aria-label": `${vote} ${which}` }));
  const turn = () => change(() => (at.on[at.k][j] = counts.checked), `${which} ${counts.checked ? "on" : "off"}`);
  const counts = h("input", { type: "checkbox", onchange: turn, "aria-label": `${which} counts` });
  const look = () => act(() => Object.assign(at, { j, all: false }), () => `${which} across images, below.`);
  const many = button("across images", look, { "aria-label": `${which} across images` });
  const tools = h("div", { class: "xw-row", style: "gap:0.4rem;align-items:center;margin:0.2rem 0 0" },
    name, votes, h("label", { style: "white-space:nowrap" }, counts, " counts"), many);
  const element = h("div", { role: "group", "aria-label": which, class: "xw-beside" }, map,
    h("div", {}, h("div", { class: "xw-ends" }, title, sum), bar.element, tools));
  const draw = (from, axis) => {
    const { k, i } = at, value = study.term(k, i, j), e = study.activation(k, i, j), mine = kept.of(k, j), on = at.on[k][j];
    lit(map, study, k, i, j);
    map.setAttribute("aria-label", `where ${which} is in ${study.shown(i)}${e ? "" : ", or what would excite it: it is 0"}`);
    title.replaceChildren(which, ...(mine.name ? [" · ", h("bdi", {}, mine.name)] : []));
    sum.replaceChildren(`v E = ${withSign(study.weight(k, j))} × ${e.toFixed(2)} = `, exact(value), on ? "" : ", does not count");
    bar.set(from, from + value, axis, value < 0 ? NEGATIVE : POSITIVE, on);
    if (document.activeElement !== name) name.value = mine.name;
    votes.forEach((one, c) => one.setAttribute("aria-pressed", `${mine.vote === CHOICES[c]}`));
    counts.checked = on;
    many.setAttribute("aria-pressed", `${at.j === j}`);
  };
  return { element, draw };
}

function sums(app) {
  const { study, at } = app, verdict = h("p", { style: "flex:1 1 16rem;margin:0" });
  const photo = h("canvas", { role: "img", style: "width:10rem;height:10rem" }), caption = h("figcaption");
  const rows = Array.from({ length: study.n }, (_, j) => feature(app, j));
  const ends = [0, 1, 2].map(() => ({ text: h("div", { class: "xw-ends" }), bar: track() }));
  const last = ends.map(({ text, bar }) => h("div", { class: "xw-beside" }, h("span"), h("div", {}, text, bar.element)));
  const top = h("div", { class: "xw-row" }, h("figure", {}, photo, caption), verdict);
  const element = part("One image as a sum of x-features", top, ...rows.map((one) => one.element), ...last, app.said);
  const draw = () => {
    const { k, i } = at, on = at.on[k], [found, given, rival] = [study.logit(k, i, on), study.network(k, i), study.rival(k, i)];
    const starts = on.map((_, j) => study.logit(k, i, on.map((counts, other) => counts && other < j)));
    const reach = [0, found, given, rival, ...starts, ...starts.map((from, j) => from + study.term(k, i, j))];
    const axis = [Math.min(...reach), Math.max(...reach)], yes = found > rival;
    rows.forEach((one, j) => one.draw(starts[j], axis));
    picture(photo, study.images, i).setAttribute("aria-label", study.shown(i));
    caption.textContent = study.shown(i);
    verdict.replaceChildren(`What counts adds up to ${withSign(found)}; the network's own logit is ${withSign(given)}. The sum is `,
      `${yes ? "" : "not "}above the largest logit of all other classes, so the module says: `,
      h("strong", {}, `${yes ? "" : "not "}${study.names[k]}`), `. That is ${study.own(k, i) === yes ? "right" : "wrong"}.`);
    const texts = ["module's logit: the sum of what counts", "network's logit", `largest other logit: ${study.rivalName(k, i)}`];
    [found, given, rival].forEach((x, r) => {
      ends[r].text.replaceChildren(texts[r], exact(x));
      ends[r].bar.set(0, x, axis, r ? QUIET : x < 0 ? NEGATIVE : POSITIVE);
    });
  };
  return { element, draw };
}

function gallery({ study, at, act }) {
  const title = h("p", { class: "xw-quiet", style: "margin:0 0 0.4rem" }), thumbs = h("div", { class: "xw-row", style: "gap:0.4rem" });
  const more = button("", () => act(() => (at.all = !at.all), () => (at.all ? "All images." : "The strongest images.")));
  const thumb = (i) => {
    const value = study.term(at.k, i, at.j), canvas = h("canvas", { style: "width:4rem;display:block", "aria-hidden": "true" });
    const say = `${study.shown(i)}: adds ${withSign(value)}`, press = () => act(() => (at.i = i), () => `Now ${study.shown(i)}, above.`);
    lit(canvas, study, at.k, i, at.j);
    return button([canvas, exact(value), h("br"), study.own(at.k, i) ? "own" : "other"], press,
      { "aria-label": say, title: say, "data-image": `${i}`, style: "padding:2px;text-align:center;font-size:0.85rem" });
  };
  let drawn = "";
  const draw = () => {
    const size = (i) => Math.abs(study.term(at.k, i, at.j)), now = `${at.k} ${at.j} ${at.all}`;
    if (now !== drawn) {
      const strongest = study.all.toSorted((a, b) => size(b) - size(a)).slice(0, at.all ? study.N : MOST.thumbs);
      thumbs.replaceChildren(...strongest.map(thumb));
      drawn = now;
    }
    for (const one of thumbs.children) one.setAttribute("aria-pressed", `${one.dataset.image === `${at.i}`}`);
    title.textContent = `x-feature ${at.j + 1} of ${study.names[at.k]}, strongest first; "own" are images of the category.`;
    more.textContent = at.all ? `show the ${MOST.thumbs} strongest` : `show all ${study.N}`;
    more.hidden = study.N <= MOST.thumbs;
  };
  return { element: part("One x-feature across images", title, thumbs, more), draw };
}

function predictions({ study, at, kept, change }) {
  const beside = h("p", { class: "xw-quiet" });
  const found = table("decisions", ["logit from", "right", "own found", "others taken for it", "mean distance to the network's logit"], 1);
  const set = (keep, text) => change(() => (at.on = at.on.map((row, k) => row.map((_, j) => keep(k, j)))), text);
  const mine = (k, j) => kept.of(k, j).vote !== "distrust", most = (k, j) => kept.tally(k, j).distrust <= kept.tally(k, j).trust;
  const buttons = [button("switch off what I distrust", () => set(mine, "what you distrust is off")),
    button("switch off what most distrust", () => set(most, "what most distrust is off")),
    button("all on", () => set(() => true, "all on"))];
  const draw = () => {
    const { k, on } = at, full = on.map((row) => row.map(() => true));
    const before = study.decided(k, full[k]), after = study.decided(k, on[k]);
    const lines = { "the network": study.decisions(k, (i) => study.network(k, i)), "all x-features": before, "what counts": after };
    const share = (right) => `${right}\u00a0of\u00a0${study.N}, ${((100 * right) / study.N).toFixed(1)}\u00a0%`;
    found.rows(Object.entries(lines).map(([what, one]) => [what, share(one.right), `${one.found} of ${one.own}`,
      `${one.taken} of ${study.N - one.own}`, one.apart.toFixed(2)]));
    const word = (i) => `${i + 1} (now ${after.says[i] === study.own(k, i) ? "right" : "wrong"})`;
    const other = study.all.filter((i) => before.says[i] !== after.says[i]).map(word).join(", ");
    const right = (ons) => ons.reduce((sum, one, c) => sum + study.decided(c, one).right, 0);
    const all = "with all x-features", changed = other ? `Decided otherwise than ${all}: image ${other}.` : `Decided as ${all}.`;
    beside.textContent = `${changed} All ${study.C} categories: ${right(on)} of ${study.C * study.N} right, ${all} ${right(full)}.`;
  };
  return { element: part("Predictions over all images", h("div", { class: "xw-row" }, buttons), found.element, beside), draw };
}

function ballot({ study, kept }) {
  const report = h("p", { style: "white-space:pre-line;overflow-wrap:anywhere;margin:0.4rem 0", "aria-live": "polite" });
  const say = (text, next) => { report.textContent = text; next?.focus(); }; // where the pressed button goes away
  const list = h("ul", { style: "padding-left:1.2rem" }), aside = h("div");
  const tallies = table("agreement of all voters", ["category", "x-feature", "names", "trust", "distrust", "agree", "voters"], 3);
  const write = (what, file) => save(`${what.replace(/[^\p{L}\p{N}]+/gu, "-")}.json`, `${JSON.stringify(file, null, 1)}\n`);
  const without = (one) => kept.get().others.filter((other) => other !== one);
  const attempt = (what) => {
    try { return what(); } catch (error) { return `refused: ${error instanceof SyntaxError ? "it is no JSON" : error.message}.`; }
  };
  const take = (text, size) => attempt(() => {
    need(text !== null, `${(size / 1e6).toFixed(1)} MB is more than ${MOST.bytes / 1e6} MB`);
    const file = checked(JSON.parse(text), study), { own, others } = kept.get();
    need(alike(file.voter) !== alike(own.voter), `votes of ${short(file.voter)} are here already, as yours`);
    kept.write({ others: joined(others, file) });
    return `taken, ${file.features.length} x-features by ${short(file.voter)}.`;
  });
  const sign = () => {
    const own = { ...kept.get().own, voter: clean(voter.value) };
    say(attempt(() => (joined(kept.get().others, own), kept.write({ own }), "Voter kept.")));
    voter.value = kept.get().own.voter;
  };
  const voter = h("input", { ...FIELD, onchange: sign, "aria-label": "voter" });
  const receive = async () => {
    const read = async (file) => [file, file.size <= MOST.bytes ? await file.text() : null];
    const texts = await Promise.all([...files.files].map(read));
    files.value = "";
    say(texts.map(([file, text]) => `${short(file.name)}: ${take(text, file.size)}`).join("\n"));
  };
  const files = h("input", { type: "file", accept: ".json", multiple: true, onchange: receive, style: "max-width:100%" });
  const send = () => {
    const { own } = kept.get();
    if (own.voter) write(`votes ${own.voter}`, own);
    say(...(own.voter ? ["Exported."] : ["Who votes? A name, or any word, tells voters apart.", voter]));
  };
  const line = (one) => {
    const remove = () => say(kept.write({ others: without(one) }) ?? "Removed.", files);
    const adopt = () => say(kept.write({ own: one, others: without(one) }) ?? "These votes are yours now.", voter);
    const busy = kept.get().own.features.length > 0; // own votes would be lost
    return h("li", {}, h("bdi", {}, one.voter), ` (${one.features.length}) `,
      button("remove", remove, { "aria-label": `remove votes of ${one.voter}` }), " ",
      button("go on as mine", adopt, { disabled: busy, "aria-label": `go on with votes of ${one.voter} as mine` }));
  };
  const row = (name, k) => (_, j) => {
    const { trust, distrust, names } = kept.tally(k, j), voters = trust + distrust;
    const texts = names.flatMap((one, at) => [at ? ", " : "", h("bdi", {}, one)]);
    const box = h("div", { style: "min-width:8rem;overflow-wrap:anywhere" }, texts);
    const share = voters ? `${Math.round((100 * Math.max(trust, distrust)) / voters)} %` : "–";
    return voters || names.length ? [[name, `${j + 1}`, box, `${trust}`, `${distrust}`, share, `${voters}`]] : [];
  };
  const draw = () => {
    const { own, others, aside: before, why } = kept.get();
    if (document.activeElement !== voter) voter.value = own.voter;
    list.replaceChildren(...others.map(line));
    const forget = () => say(kept.write({ aside: [] }) ?? "Forgotten.", voter);
    aside.replaceChildren(...(before.length ? [`What was kept here before does not fit${why && ` (${why})`}. It is set aside, not lost. `,
      button("save it", () => write("set aside", before)), " ", button("forget it", forget)] : []));
    tallies.rows(study.names.flatMap((name, k) => Array.from({ length: study.n }, row(name, k)).flat()));
  };
  const tools = h("div", { class: "xw-row", style: "align-items:center" }, h("label", {}, "Voter ", voter),
    button("export my votes", send), h("label", {}, "Import votes ", files));
  return { element: part("Votes", tools, report, aside, list, tallies.element), draw };
}

export default { render({ model, el }) {
  const study = opened(model.get("data")), kept = keeping(model, study), said = spoken();
  const at = { k: 0, i: study.first(0), j: 0, all: false, on: study.names.map(() => Array(study.n).fill(true)) };
  const draw = () => parts.forEach((one) => one.draw());
  const act = (what, text) => { what(); draw(); said.textContent = text(); };
  const logit = () => withSign(study.logit(at.k, at.i, at.on[at.k])), right = () => study.decided(at.k, at.on[at.k]).right;
  const change = (what, text) => {
    const before = logit();
    act(what, () => `${text}: the module's logit is ${logit()}, was ${before}; ${right()} of ${study.N} images right.`);
  };
  const parts = [chooser, sums, gallery, predictions, ballot].map((one) => one({ study, at, kept, said, act, change }));
  frame(model, el, ...parts.map((one) => one.element));
  draw();
  model.on("change:kept", draw);
  return () => model.off("change:kept", draw);
} };
