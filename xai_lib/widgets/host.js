// Runs widgets on a page without a kernel: gives each ES module the `model` and `el` that anywidget would give it.
// A widget's place is <div class="xai-widget" data-widget="published/notebook/tag" data-kind="digit">static picture</div>.
// It starts when it comes into view. Scripts are plain files, so that a page opened from a disk works as well.
(() => {
  const root = new URL(".", document.currentScript.src).href;
  const loads = new Map(); // path -> {promise, resolve}

  window.xaiWidgets = (path, value) => loads.get(path).resolve(value);

  function load(path) {
    if (!loads.has(path)) {
      const one = {};
      one.promise = new Promise((resolve, reject) => {
        one.resolve = resolve;
        const script = document.createElement("script");
        script.src = `${root}${path}.js`;
        script.onerror = () => reject(new Error(`${path}.js could not be read`));
        document.head.append(script);
      });
      loads.set(path, one);
    }
    return loads.get(path).promise;
  }

  // The state that papermill stored: JSON, and buffers in base64 with their place in it.
  function restore({ state, buffers = [] }) {
    const whole = structuredClone(state);
    for (const { path, data } of buffers) {
      const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
      let place = whole;
      for (const step of path.slice(0, -1)) place = place[step];
      place[path.at(-1)] = new DataView(bytes.buffer);
    }
    return whole;
  }

  // anywidget's model, without a kernel: `kept` outlives the page in the browser's storage.
  function modelOf(name, values) {
    const key = `xai-widget ${name}`, heard = new Map(), changed = new Set();
    try {
      const kept = JSON.parse(localStorage.getItem(key));
      if (kept && typeof kept === "object" && !Array.isArray(kept)) values.kept = kept;
    } catch { /* storage is off or holds something else: start afresh */ }
    return {
      get: (trait) => values[trait],
      set(trait, value) {
        values[trait] = value;
        changed.add(trait);
        for (const hear of heard.get(`change:${trait}`) ?? []) hear();
      },
      save_changes() {
        if (!changed.delete("kept")) return;
        try {
          localStorage.setItem(key, JSON.stringify(values.kept));
        } catch { /* full or off: the page goes on, the next visit begins afresh */ }
      },
      on: (event, hear) => heard.set(event, [...(heard.get(event) ?? []), hear]),
      off: (event, hear) => heard.set(event, (heard.get(event) ?? []).filter((one) => hear && one !== hear)),
    };
  }

  async function start(place) {
    const { widget, kind } = place.dataset;
    try {
      const [{ module, style }, stored] = await Promise.all([load(kind), load(widget)]);
      if (!document.getElementById("xai-widget-style")) {
        const sheet = document.createElement("style");
        sheet.id = "xai-widget-style";
        sheet.textContent = style;
        document.head.append(sheet);
      }
      const url = URL.createObjectURL(new Blob([module], { type: "text/javascript" }));
      const { default: run } = await import(url);
      URL.revokeObjectURL(url);
      const el = document.createElement("div");
      await run.render({ model: modelOf(widget, restore(stored)), el });
      place.replaceChildren(el);
      place.dataset.state = "running";
    } catch (error) {
      place.dataset.state = "failed"; // the static picture stays
      console.error(error);
    }
  }

  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      start(target);
    }
  }, { rootMargin: "400px" });
  document.querySelectorAll(".xai-widget").forEach((place) => seen.observe(place));
})();
