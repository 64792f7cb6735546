// Results explorer: the ledger as a table, on a narrow place as cards. Filters live in the address of the page, so that
// a link shows the same claims to another reader.

// Colours of the page's badges, with plain ones behind for JupyterLab: background, text.
const BADGES = {
  reproduced: ["success", "#00763a", "#fff"],
  partly: ["warning", "#f66a0a", "#14181e"],
  "not reproduced": ["danger", "#c4243e", "#fff"],
  inconclusive: ["muted", "#29313d", "#fff"],
  shown: ["info", "#276be9", "#fff"],
  "not tested": ["light", "#f3f4f5", "#14181e"],
};

const COLUMNS = [ // name in the address, heading, what to sort by
  ["claim", "Claim", (row) => row.title],
  ["paper", "Paper", (row) => row.paper_value],
  ["ours", "Ours", (row) => row.ours],
  ["spread", "Spread", (row) => row.sd],
  ["n", "n", (row) => row.seeds || null],
  ["verdict", "Verdict", (row, data) => data.verdicts.indexOf(row.verdict)],
];

const STYLE = `
.xw-ledger { container-type: inline-size; }
.xw .xw-ledger table { display: table; width: 100%; margin: 0; table-layout: fixed; overflow: visible; }
.xw .xw-ledger :is(th, td) { overflow-wrap: anywhere; vertical-align: top; padding: 0.35rem 0.4rem; }
.xw .xw-ledger tbody :is(th, td) { font-weight: 400; }
.xw .xw-ledger tbody[hidden] { display: none; }
.xw .xw-ledger :is(.xw-sort, .xw-open) { background: none; border: 0; padding: 0; text-align: left; min-height: 1.75rem; }
.xw .xw-ledger .xw-sort { font-weight: 600; white-space: nowrap; }
.xw .xw-ledger .xw-open { overflow-wrap: anywhere; min-height: 0; }
.xw .xw-ledger .xw-open::before { content: "▸ " / ""; color: var(--quiet); }
.xw .xw-ledger .xw-open[aria-expanded="true"] { box-shadow: none; font-weight: 600; }
.xw .xw-ledger .xw-open[aria-expanded="true"]::before { content: "▾ " / ""; }
.xw .xw-ledger :is(.xw-sort, .xw-open):hover { color: var(--accent); text-decoration: underline; }
.xw .xw-ledger th[aria-sort="ascending"] .xw-sort::after { content: " ▲" / ""; }
.xw .xw-ledger th[aria-sort="descending"] .xw-sort::after { content: " ▼" / ""; }
.xw .xw-ledger :is(.xw-badge, .xw-verdict) { background: var(--badge); color: var(--badge-text); }
.xw .xw-ledger .xw-badge { display: inline-block; border-radius: 4px; padding: 0.05rem 0.4rem; font-weight: 600;
  box-shadow: inset 0 0 0 1px color-mix(in srgb, var(--badge) 70%, #888); overflow-wrap: normal; }
.xw .xw-ledger .xw-verdict { border-width: 2px; border-color: var(--badge); font-weight: 600; }
.xw .xw-ledger .xw-verdict[aria-pressed="true"] { border-color: var(--ink); box-shadow: inset 0 0 0 1px var(--ground); }
.xw .xw-ledger .xw-verdict[aria-pressed="true"]::before { content: "✓ " / ""; }
.xw .xw-ledger .xw-some .xw-verdict[aria-pressed="false"] { background: var(--ground); color: var(--ink); border-color: var(--line); }
.xw .xw-ledger td svg { display: block; width: 100%; max-width: 12rem; margin-top: 0.15rem; overflow: visible; }
.xw .xw-ledger input { box-sizing: border-box; width: 11rem; }
.xw .xw-ledger .xw-detail p { margin: 0 0 0.4rem; max-width: 46rem; }
.xw .xw-ledger .xw-detail a { color: var(--accent); }
.xw .xw-ledger .xw-small { display: none; }
@container (max-width: 640px) {
  .xw .xw-ledger-table thead { display: none; }
  .xw .xw-ledger .xw-small { display: inline-flex; }
  .xw .xw-ledger :is(table, tbody, th, td) { display: block; border: 0; padding: 0.1rem 0; }
  .xw .xw-ledger tbody { border: 1px solid var(--line); border-radius: 6px; padding: 0.5rem 0.7rem; margin: 0 0 0.6rem; }
  .xw .xw-ledger .xw-main { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0.1rem 1rem; }
  .xw .xw-ledger .xw-main > * { flex: 0 1 auto; }
  .xw .xw-ledger .xw-main > :is([data-column="claim"], [data-column="verdict"], [data-column="spread"]) { flex: 1 0 100%; }
  .xw .xw-ledger .xw-main > [data-column="verdict"] > * { display: inline-block; margin-right: 0.5rem; }
  .xw .xw-ledger .xw-main > [data-column="n"] { order: 1; }
  .xw .xw-ledger .xw-main > [data-column="spread"] { order: 2; }
  .xw .xw-ledger .xw-main > [data-column="verdict"] { order: 3; }
  .xw .xw-ledger .xw-main > :empty { display: none; }
  .xw .xw-ledger .xw-main > :is([data-column="paper"], [data-column="ours"], [data-column="n"])::before {
    content: attr(data-label) " "; color: var(--quiet); }
  .xw .xw-ledger [data-column="ours"] > :only-child { display: inline; }
  .xw .xw-ledger .xw-open { min-height: 2rem; }
  .xw .xw-ledger .xw-detail { margin-top: 0.6rem; }
  .xw .xw-ledger .xw-choice { flex: 1 0 100%; flex-wrap: nowrap; }
  .xw .xw-ledger .xw-choice > span { flex: 0 0 5rem; }
  .xw .xw-ledger .xw-choice > :is(select, input) { flex: 1 1 0; min-width: 0; width: auto; }
  .xw .xw-ledger td svg { max-width: none; }
}`;

const colours = (verdict) => {
  const [name, back, text] = BADGES[verdict];
  return `--badge: var(--pst-color-${name}, ${back}); --badge-text: var(--pst-color-${name}-text, ${text})`;
};
const badge = (verdict) => h("span", { class: "xw-badge", style: colours(verdict) }, verdict);
const digits = (x) => `${+x.toPrecision(4)}`.replace("-", "−");

// ---------------------------------------------------------------------------------------------------------------------
// The strip of dots: one line for each part, all on one scale with the paper's value and the rule's threshold.

const WIDTH = 150, LINE = 14, EDGE = 5;

function told({ values, unit, line, threshold }) {
  const parts = Object.entries(values).map(([part, seeds]) => {
    const numbers = Object.values(seeds), many = numbers.length === 1 ? "1 value" : `${numbers.length} values`;
    const range = `${digits(Math.min(...numbers))} to ${digits(Math.max(...numbers))} ${unit}`.trim();
    return `${part ? `${part}: ` : ""}${many}, ${range}`;
  });
  if (line !== null) parts.push(`the paper's value ${digits(line)}`);
  if (threshold !== null) parts.push(`the rule's threshold ${digits(threshold)}`);
  return parts.join("; ");
}

function strip(row) {
  const parts = Object.values(row.values).map(Object.values);
  if (!parts.length) return null;
  const marks = [row.line, row.threshold].filter((one) => one !== null), all = [...parts.flat(), ...marks];
  const low = Math.min(...all), range = Math.max(...all) - low;
  const at = (x) => (range ? EDGE + ((x - low) / range) * (WIDTH - 2 * EDGE) : WIDTH / 2).toFixed(1);
  const height = parts.length * LINE;
  const mark = (x, dashes) => x === null ? [] : [svg("line", {
    x1: at(x), x2: at(x), y1: 0, y2: height, stroke: "var(--ink)", "stroke-width": 1.5, "stroke-dasharray": dashes,
  })];
  const lines = parts.map((numbers, k) => {
    const y = (k + 0.5) * LINE;
    const dots = numbers.map((x) => svg("circle", { cx: at(x), cy: y, r: 3, fill: "var(--accent)", "fill-opacity": 0.6 }));
    return svg("g", {}, svg("line", { x1: 0, x2: WIDTH, y1: y, y2: y, stroke: "var(--line)" }), ...dots);
  });
  const size = { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": told(row) };
  return svg("svg", size, ...lines, ...mark(row.threshold, "2 2"), ...mark(row.line, "none"));
}

function legend() {
  const sign = (shape) => svg("svg", {
    viewBox: "0 0 14 14", "aria-hidden": "true", style: "display: inline-block; width: 14px; vertical-align: -2px",
  }, shape);
  const mark = (dashes) => sign(svg("line", {
    x1: 7, x2: 7, y1: 0, y2: 14, stroke: "var(--ink)", "stroke-width": 1.5, "stroke-dasharray": dashes,
  }));
  const dot = sign(svg("circle", { cx: 7, cy: 7, r: 3, fill: "var(--accent)", "fill-opacity": 0.6 }));
  const pair = (picture, text) => h("span", { style: "margin-right: 0.9rem" }, picture, ` ${text}`);
  return h("p", { class: "xw-quiet", style: "margin: 0 0 0.4rem" },
    pair(dot, "one seed (or category)"), pair(mark("none"), "the paper's value"), pair(mark("2 2"), "the rule's threshold"));
}

// ---------------------------------------------------------------------------------------------------------------------
// One claim: its line in the table, and below it, once opened, what the run says in full.

const fact = (name, ...text) => h("p", {}, h("strong", {}, `${name}: `), ...text);

// A link to another kind of place than a file or a page is none that we wrote.
function link([text, address]) {
  const { protocol } = new URL(address, document.baseURI);
  return ["http:", "https:", "file:"].includes(protocol) ? [h("a", { href: address }, text)] : [];
}

function seedsOf(row) {
  return Object.entries(row.values).map(([part, seeds]) => fact(part ? `Values, ${part}` : "Values",
    Object.entries(seeds).map(([seed, x]) => `${seed}: ${`${x}`.replace("-", "−")}`).join(", ")));
}

function detail(row) {
  const links = Object.entries(row.links).flatMap(link);
  const joined = links.flatMap((one, k) => (k ? [" · ", one] : [one]));
  return [
    h("p", {}, row.claim),
    fact(`Rule (${row.kind})`, row.rule),
    ...(row.profile ? [fact("Run", `${row.notebook}, ${row.profile} run on ${row.data}; ${row.device}`)] : []),
    ...seedsOf(row),
    ...(row.stale.length ? [fact("Stale", `since this run, ${row.stale.join(", ")} changed`)] : []),
    ...(joined.length ? [fact("Open", ...joined)] : []),
  ];
}

function entryOf(row, data) {
  const more = h("tr", { role: "row", hidden: true });
  const open = button(row.title, () => {
    more.hidden = !more.hidden;
    open.setAttribute("aria-expanded", `${!more.hidden}`);
    if (!more.firstChild) more.append(h("td", { role: "cell", colSpan: COLUMNS.length, class: "xw-detail" }, detail(row)));
  }, { class: "xw-open", "aria-expanded": "false" });
  const about = [data.papers[row.paper], row.where, row.notebook].join(" · ");
  const dots = strip(row), quiet = (text) => (text ? [h("div", { class: "xw-quiet" }, text)] : []);
  const contents = {
    claim: [open, ...quiet(about)],
    paper: row.paper_text ? [row.paper_text] : [],
    ours: row.ours_text ? row.ours_text.split("; ").map((part) => h("div", {}, part)) : [],
    spread: dots ? [dots] : [],
    n: row.seeds ? [`${row.seeds}`] : [],
    verdict: [badge(row.verdict), ...quiet(row.reason), ...quiet(row.stale.length ? "stale" : "")],
  };
  const cells = COLUMNS.map(([name, heading]) => h(name === "claim" ? "th" : "td", {
    role: name === "claim" ? "rowheader" : "cell", "data-column": name, "data-label": heading,
  }, contents[name]));
  const body = h("tbody", { role: "rowgroup", "data-claim": row.id }, h("tr", { role: "row", class: "xw-main" }, cells), more);
  const words = [row.id, row.title, row.claim, row.where, row.rule, row.notebook, row.data, row.reason, data.papers[row.paper]];
  return { row, body, words: words.join(" ").toLowerCase() };
}

// ---------------------------------------------------------------------------------------------------------------------
// What the reader asks for: {paper, notebook, verdicts, text, sort, down}, and the same in the page's address.

const nothing = () => ({ paper: "", notebook: "", verdicts: new Set(), text: "", sort: "", down: false });

// Only what exists is taken from the address; an address that says nothing of filters (a heading's) gives null.
function read(fragment, data) {
  const said = new URLSearchParams(fragment.replace(/^#/, ""));
  if (!["paper", "notebook", "verdict", "text", "sort"].some((name) => said.has(name))) return null;
  const asked = nothing(), one = (name) => said.get(name) ?? "";
  if (one("paper") in data.papers) asked.paper = one("paper");
  if (data.rows.some((row) => row.notebook === one("notebook"))) asked.notebook = one("notebook");
  asked.verdicts = new Set(one("verdict").split(",").filter((verdict) => data.verdicts.includes(verdict)));
  asked.text = one("text").slice(0, 200);
  asked.down = one("sort").startsWith("-");
  asked.sort = COLUMNS.find(([name]) => name === one("sort").replace("-", ""))?.[0] ?? "";
  return asked;
}

const flipped = (set, one) => new Set(set.has(one) ? [...set].filter((other) => other !== one) : [...set, one]);

function write({ paper, notebook, verdicts, text, sort, down }) {
  const pairs = { paper, notebook, verdict: [...verdicts].join(","), text: text.trim(), sort: sort && (down ? "-" : "") + sort };
  const said = Object.entries(pairs).filter(([, value]) => value);
  return new URLSearchParams(said).toString().replaceAll("%2C", ",");
}

function matcher({ paper, notebook, text }) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return (entry) => (!paper || entry.row.paper === paper) && (!notebook || entry.row.notebook === notebook)
    && words.every((word) => entry.words.includes(word));
}

// Entries in order; those without a value come last in both directions, equal ones stay as they are.
function ordered(entries, { sort, down }, data) {
  if (!sort) return entries;
  const [, , by] = COLUMNS.find(([name]) => name === sort), sign = down ? -1 : 1;
  const keyed = entries.map((entry) => [by(entry.row, data), entry]);
  const compare = (a, b) => typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
  return keyed.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : sign * compare(a, b))).map(([, entry]) => entry);
}

// ---------------------------------------------------------------------------------------------------------------------

function heading(press) {
  const cells = COLUMNS.map(([name, text]) => h("th", { role: "columnheader", scope: "col" },
    h("button", { type: "button", class: "xw-sort", onclick: () => press(name) }, text)));
  const widths = ["30%", "11%", "18%", "18%", "7%", "16%"];
  cells.forEach((cell, k) => (cell.style.width = widths[k]));
  return { element: h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, cells)), cells };
}

// All controls. `change` hears what to alter in what is asked for; `show` sets them to it.
function controls(data, change) {
  const papers = Object.keys(data.papers), notebooks = [...new Set(data.rows.map((row) => row.notebook))].sort();
  const paper = choice("Paper", ["all", ...Object.values(data.papers)], 0, () => change({ paper: papers[paper.select.selectedIndex - 1] ?? "" }));
  const notebook = choice("Notebook", ["all", ...notebooks], 0, () => change({ notebook: notebooks[notebook.select.selectedIndex - 1] ?? "" }));
  const search = h("input", { type: "text", autocomplete: "off", spellcheck: false, oninput: () => change({ text: search.value }) });
  const names = COLUMNS.map(([name]) => name);
  const sort = choice("Sort by", ["the papers' order", ...COLUMNS.map(([, text]) => text.toLowerCase())], 0,
    () => change({ sort: names[sort.select.selectedIndex - 1] ?? "" }));
  const down = button("descending", () => change({ down: down.getAttribute("aria-pressed") !== "true" }), { class: "xw-small" });
  sort.element.classList.add("xw-small");
  const all = button("show all", () => change(nothing()));
  const verdicts = data.verdicts.map((verdict) => button("", () => change({ toggle: verdict }), { class: "xw-verdict", style: colours(verdict) }));
  const row = h("div", { class: "xw-row", role: "group", "aria-label": "verdicts", style: "gap: 0.4rem" }, verdicts);
  const show = (asked, counts) => {
    paper.select.selectedIndex = papers.indexOf(asked.paper) + 1;
    notebook.select.selectedIndex = notebooks.indexOf(asked.notebook) + 1;
    sort.select.selectedIndex = names.indexOf(asked.sort) + 1;
    down.setAttribute("aria-pressed", `${asked.down}`);
    if (search.value !== asked.text) search.value = asked.text;
    row.classList.toggle("xw-some", asked.verdicts.size > 0);
    verdicts.forEach((one, k) => {
      one.textContent = `${data.verdicts[k]} ${counts[k]}`;
      one.setAttribute("aria-pressed", `${asked.verdicts.has(data.verdicts[k])}`);
    });
    all.disabled = !write(asked);
  };
  const found = h("label", { class: "xw-choice" }, h("span", {}, "Search"), search);
  const first = h("div", { class: "xw-row", style: "align-items: center" }, paper.element, notebook.element, found, sort.element, down, all);
  return { elements: [row, first], show };
}

// The address keeps what is asked for. Written a moment late: browsers refuse many changes in a row.
function addressKeeper(data, hear) {
  let waiting;
  const follow = () => {
    const asked = read(location.hash, data);
    if (asked) hear(asked);
  };
  window.addEventListener("hashchange", follow);
  const keep = (asked) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const text = write(asked);
      if (!text && !read(location.hash, data)) return; // a heading's address stays
      history.replaceState(history.state, "", text ? `#${text}` : location.href.split("#")[0]);
    }, 200);
  };
  return { keep, stop: () => window.removeEventListener("hashchange", follow) };
}

export default { render({ model, el }) {
  const data = model.get("data"), entries = data.rows.map((row) => entryOf(row, data)), said = spoken();
  let asked = (data.address && read(location.hash, data)) || nothing();
  const head = heading((name) => {
    const again = asked.sort === name; // ascending, descending, the papers' order
    update({ sort: again && asked.down ? "" : name, down: again && !asked.down });
  });
  const table = h("table", { role: "table", "aria-label": "claims" }, head.element, entries.map(({ body }) => body));

  function show() {
    const fits = matcher(asked), found = entries.filter(fits);
    const chosen = new Set(found.filter(({ row }) => !asked.verdicts.size || asked.verdicts.has(row.verdict)));
    for (const entry of entries) entry.body.hidden = !chosen.has(entry);
    panel.show(asked, data.verdicts.map((verdict) => found.filter(({ row }) => row.verdict === verdict).length));
    head.cells.forEach((cell, k) => {
      if (COLUMNS[k][0] === asked.sort) cell.setAttribute("aria-sort", asked.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
    said.textContent = `${chosen.size} of ${entries.length} claims`;
  }
  function update({ toggle, ...change }) {
    const sorted = [asked.sort, asked.down].join();
    asked = { ...asked, ...change };
    if (toggle) asked.verdicts = flipped(asked.verdicts, toggle);
    if ([asked.sort, asked.down].join() !== sorted) table.append(...ordered(entries, asked, data).map(({ body }) => body));
    show();
    keeper?.keep(asked);
  }
  const panel = controls(data, update);
  const keeper = data.address ? addressKeeper(data, update) : null;
  frame(model, el, h("div", { class: "xw-ledger" }, h("style", {}, STYLE), panel.elements, said, legend(),
    h("div", { class: "xw-ledger-table" }, table)));
  if (asked.sort) table.append(...ordered(entries, asked, data).map(({ body }) => body));
  show();
  return keeper?.stop;
} };
