// One trace: the verdict, then the waterfall with what is known of the span that one points to.

import { ask } from "./api.js";
import { causeBar, causeTable } from "./causes.js";
import { details } from "./details.js";
import { add, button, fill, make, place } from "./dom.js";
import { KNOWN, about, bytes, colours, count, digest, duration, imageParts, moment, percent, process, spanName } from "./format.js";
import { build, isWait } from "./tree.js";
import { Waterfall } from "./waterfall.js";

const SHOW = [["", "All"], ["path", "Critical path"], ["waits", "Waits"], ["errors", "Errors"]];
const LEGEND = 16; // processes in the legend at most
const LEAST = 0.005; // of the whole: spans with less of the critical path are not shown as such
const KEYS = [
  ["↑ ↓", "span by span"], ["→ ←", "open, close"], ["Enter", "zoom to the span"], ["+ −", "zoom"], ["A D", "to and fro"],
  ["0", "all of it"], ["N P", "along the critical path"], ["/", "search"],
];

export function trace(host, [id], values, app) {
  let state = { ...values };
  let waterfall = null;
  let saving = 0;
  const aborting = new AbortController();
  let stopped = false;

  fill(host, make("p", { class: "dim", role: "status" }, "Reading the trace"));
  load();

  function load() {
    ask(`traces/${encodeURIComponent(id)}`, {}, aborting.signal).then(render, (error) => {
      if (error.name === "AbortError") return;
      fill(host);
      app.tell(error.message);
    });
  }

  function render(found) {
    if (stopped) return;
    if (waterfall) waterfall.stop();
    const { verdict } = found;
    found.path = verdict ? verdict.path.filter(([index]) => index >= 0).map(([index, start, end, cause]) => [index, start, end, (verdict.causes[cause] || {}).kind]) : [];
    const tree = build(found);
    const root = found.spans[tree.roots.length ? tree.roots[0].span.index : 0] || { name: "", attributes: {}, length: 0, start: 0 };
    const attributes = root.attributes || {};
    const colour = colours(found.services);
    const named = found.spans.find((span) => span.attributes && span.attributes["container.image.name"]);
    const image = String((named && named.attributes["container.image.name"]) || attributes["container.id"] || "");
    const operation = String(attributes["splitd.operation"] || goal(found.spans) || spanName(root.name));
    app.title(`${operation} ${image}`);

    const panel = make("aside", { class: "panel", "aria-label": "The span" });
    const search = make("input", { type: "search", id: "find", placeholder: "Find in spans", autocomplete: "off", spellcheck: "false", "aria-keyshortcuts": "/" });
    const shows = SHOW.map(([value, text]) => button(text, () => {
      state.show = value;
      wanted();
    }, { "data-show": value }));
    const hits = make("span", { class: "dim", role: "status" });
    const processes = used(found);
    const legend = processes.slice(0, LEGEND).map((name) => button([make("i", { class: `swatch p-${colour(name)}`, "aria-hidden": "true" }), process(name)].flat(), () => {
      dimmed = dimmed === process(name) ? "" : process(name);
      waterfall.setDim(dimmed);
      for (const each of legend) each.setAttribute("aria-pressed", String(dimmed !== "" && each.dataset.process === dimmed));
    }, { "aria-pressed": "false", "data-process": process(name), class: "process" }));
    let dimmed = "";
    let focused = null;

    const tell = (node) => fill(panel, node && button("Close", () => {
      focused = null;
      panel.classList.remove("open");
      tell(null);
    }, { class: "close" }), details(found, tree, node, colour, (index) => waterfall.go(index)));

    waterfall = new Waterfall(found, tree, colour, {
      view: (view) => save(view ? { from: seconds(view.from), to: seconds(view.to) } : { from: "", to: "" }),
      focus: (node) => {
        focused = node;
        panel.classList.add("open");
        tell(node);
        save({ span: node.span ? node.span.id : "" });
      },
      hover: (node) => tell(node || focused),
      all: () => {
        state = { ...state, show: "", q: "" };
        search.value = "";
        wanted();
      },
    });
    waterfall.covered = () => (getComputedStyle(panel).position === "fixed" && panel.classList.contains("open") ? panel.offsetHeight : 0);

    fill(host,
      header(found, operation, image, attributes, root, load),
      make("section", { class: "spans", "aria-label": "Waterfall" },
        make("div", { class: "tools" },
          make("div", { class: "group", role: "group", "aria-label": "Which spans" }, shows),
          make("label", { for: "find" }, make("span", { class: "hidden" }, "Find in spans"), search), hits,
          make("div", { class: "group zooms", role: "group", "aria-label": "Zoom" },
            button("−", () => waterfall.zoom(0.5), { "aria-label": "Zoom out" }), button("+", () => waterfall.zoom(2), { "aria-label": "Zoom in" }), button("Fit", () => waterfall.all(), { "aria-label": "Fit all of the time" }))),
        make("div", { class: "legend" }, legend, processes.length > LEGEND && make("span", { class: "sign" }, `and ${processes.length - LEGEND} more`),
          make("span", { class: "sign" }, make("i", { class: "bar wait p-images", "aria-hidden": "true" }), "waits"),
          found.path.length > 0 && make("span", { class: "sign" }, make("i", { class: "stroke", "aria-hidden": "true" }), "critical path")),
        make("div", { class: "split" }, waterfall.element, panel),
        make("p", { class: "keys", id: "keys" }, KEYS.map(([key, text]) => make("span", {}, make("kbd", {}, key), ` ${text}`)))));
    tell(null);
    search.addEventListener("input", () => {
      state.q = search.value;
      wanted();
    });
    search.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === "ArrowDown") {
        event.preventDefault();
        waterfall.body.focus();
      }
    });
    host.addEventListener("keydown", (event) => {
      if (event.key !== "/" || event.target === search) return;
      event.preventDefault();
      search.focus();
    });
    settle();
    previous(host.querySelector(".before"), found, image, operation);

    // Which spans have rows: by the buttons, and by the text.
    function wanted() {
      const show = SHOW.some(([value]) => value === state.show) ? state.show : "";
      const text = (state.q || "").trim().toLowerCase();
      for (const each of shows) each.setAttribute("aria-pressed", String(each.dataset.show === (show || "")));
      const tests = [];
      const least = show === "path" ? (tree.whole.to - tree.whole.from) * LEAST : 0;
      if (show === "path") tests.push((_, index) => (tree.path.get(index) || 0) > least);
      if (show === "waits") tests.push((span) => isWait(span));
      if (show === "errors") tests.push((span) => span.error);
      if (text) tests.push((span) => haystack(span, found).includes(text));
      let matching = 0;
      if (tests.length) matching = found.spans.filter((span, index) => tests.every((test) => test(span, index))).length;
      const held = [...tree.path.values()].filter((each) => each > least).reduce((sum, each) => sum + each, 0);
      const share = show === "path" && !text ? `, ${percent(held / (tree.whole.to - tree.whole.from))} of the time` : "";
      const said = tests.length ? `${count(matching, "span")} of ${found.spans.length}${share}` : "";
      if (hits.textContent !== said) hits.textContent = said;
      waterfall.setWanted(tests.length ? (span, index) => tests.every((test) => test(span, index)) : null);
      save({});
    }

    function settle() {
      search.value = state.q || "";
      const from = Number(state.from) * 1e6;
      const to = Number(state.to) * 1e6;
      if (state.to && to > from) waterfall.setView(from, to, false);
      else waterfall.setView(tree.whole.from, tree.whole.to, false);
      wanted();
      const index = state.span ? found.spans.findIndex((each) => each.id === state.span) : -1;
      if (index >= 0 && !(focused && focused.chain.includes(index))) waterfall.go(index);
    }
    settled = settle;
  }

  let settled = null;

  function save(change) {
    state = { ...state, ...change };
    clearTimeout(saving);
    saving = setTimeout(() => app.set(place(["trace", id], state)), 200);
  }

  return {
    update(next) {
      state = { ...next };
      if (settled) settled();
    },
    stop() {
      stopped = true;
      clearTimeout(saving);
      aborting.abort();
      if (waterfall) waterfall.stop();
    },
  };
}

// What an operation is, before its root says so at its end.
function goal(spans) {
  const found = spans.map((span) => /^images\.(pull|push|import|export)$/.exec(span.name)).find(Boolean);
  return found ? found[1] : "";
}

function seconds(microseconds) {
  return (microseconds / 1e6).toFixed(6).replace(/\.?0+$/, "");
}

function header(found, operation, image, attributes, root, again) {
  const { verdict } = found;
  const [before, last] = imageParts(image);
  const facts = [
    ["Began", moment(found.began)], ["Took", duration(root.length / 1e6)],
    attributes["splitd.bytes"] !== undefined && ["Fetched", bytes(Number(attributes["splitd.bytes"]))],
    attributes["splitd.bytes.present"] > 0 && ["There already", bytes(Number(attributes["splitd.bytes.present"]))],
    attributes["splitd.layers"] !== undefined && ["Layers", `${attributes["splitd.layers"]}${attributes["splitd.layers.present"] ? `, ${attributes["splitd.layers.present"]} there already` : ""}`],
    attributes["splitd.namespace"] && ["Namespace", String(attributes["splitd.namespace"])],
    attributes["splitd.snapshotter"] && ["Snapshotter", String(attributes["splitd.snapshotter"])],
    attributes["oci.manifest.digest"] && ["Digest", digest(String(attributes["oci.manifest.digest"]))],
    attributes["splitd.outcome"] && ["Outcome", String(attributes["splitd.outcome"])],
    ["Spans", found.left_out ? `${found.spans.length}, and ${found.left_out} short ones that are not shown` : String(found.spans.length)],
    ["Trace", found.id],
  ].filter(Boolean);
  return make("header", { class: "verdict" },
    make("div", { class: "heading" },
      make("h1", {}, make("span", { class: "operation" }, operation), " ", make("span", { class: "dim" }, before), make("strong", {}, last)),
      make("p", { class: "before" })),
    found.spans.some((span) => span.open) && make("p", { class: "still", role: "status" }, "Still under way: what has not ended is shown as if it ended now.", button("Ask again", again)),
    verdict && make("p", { class: "sentence" }, verdict.sentence),
    verdict && verdict.advice && make("p", { class: "advice" }, verdict.advice),
    verdict && verdict.causes.length > 0 && [causeBar(verdict.causes), causeTable(verdict.causes)],
    make("dl", { class: "facts" }, facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))));
}

// A link to the comparison with the pull before this one of the same image.
async function previous(host, found, image, operation) {
  if (!image || !host) return;
  try {
    const { traces } = await ask("traces", { image, operation, limit: 200 });
    const older = traces.find((each) => each.id !== found.id && each.began < found.began && each.image === image);
    if (older) fill(host, make("a", { class: "action", href: place(["compare", older.id, found.id]) }, `Compare with the ${operation} before, which took ${duration(older.seconds)}`));
  } catch {
    fill(host); // the list says what is wrong with it
  }
}

// The processes of a trace, the node's first.
function used(found) {
  const rank = (name) => (KNOWN.indexOf(process(name)) + KNOWN.length + 1) % (KNOWN.length + 1);
  return [...found.services].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}

const haystacks = new WeakMap();

function haystack(span, found) {
  if (!haystacks.has(span)) haystacks.set(span, `${span.name} ${spanName(span.name)} ${process(found.services[span.service])} ${about(span.attributes)} ${JSON.stringify(span.attributes || {})} ${span.message || ""} ${span.id}`.toLowerCase());
  return haystacks.get(span);
}
