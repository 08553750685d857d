// The list of traces, newest first, with filters. Two of them can be chosen for a comparison.

import { ask, repeated } from "./api.js";
import { add, button, fill, make, place } from "./dom.js";
import { ago, bytes, count, duration, imageParts, moment, percent } from "./format.js";

const OPERATIONS = ["pull", "push", "import", "export", "run", "exec", "delete", "collect"];
const LONGER = [["", "Any time"], ["0.1", "0.1 s or more"], ["1", "1 s or more"], ["5", "5 s or more"], ["10", "10 s or more"], ["60", "1 min or more"]];
const SINCE = [["", "Any day"], ["900", "Last 15 min"], ["3600", "Last hour"], ["86400", "Last day"], ["604800", "Last week"]];
const EVERY = 5000;
const LEAST = 0.1; // seconds that a trace took at least for its causes to be asked for
const TOGETHER = 8;

export function list(host, _, values, app) {
  let wanted = { ...values };
  let aborting = null;
  let typing = 0;
  const chosen = [];
  const causes = new Map();
  let judging = false;
  let stopped = false;
  let last = null;
  const rows = new Map();

  const search = make("input", { type: "search", id: "image", placeholder: "Part of an image's name", autocomplete: "off", spellcheck: "false" });
  const operation = choice("operation", [["", "Operations"], ...OPERATIONS.map((each) => [each, each]), ["all", "All, also single calls"]]);
  const longer = choice("longer", LONGER);
  const since = choice("since", SINCE);
  const failed = make("input", { type: "checkbox", id: "failed" });
  const comparing = make("a", { class: "action", "aria-disabled": "true" }, "Compare two");
  const said = make("p", { class: "count", role: "status" });
  const body = make("tbody", { role: "rowgroup" });

  add(host, [
    make("h1", { class: "quiet" }, "Traces"),
    make("div", { class: "filters", role: "search" },
      make("label", { class: "wide", for: "image" }, make("span", { class: "hidden" }, "Image"), search),
      labelled("Operation", operation), labelled("Time it took", longer), labelled("When", since),
      make("label", { class: "check" }, failed, "Failed only"), comparing),
    said,
    make("table", { class: "traces", role: "table", "aria-label": "Traces" },
      make("thead", { role: "rowgroup" }, make("tr", { role: "row" },
        ["", "Began", "Operation", "Image or name", "Took", "Mostly", "Fetched", "Layers", "Outcome"].map((title, index) =>
          make("th", { role: "columnheader", scope: "col", class: ["pick", "when", "what", "name", "took", "mostly", "bytes number", "layers number", "outcome"][index] },
            title || make("span", { class: "hidden" }, "Choose for a comparison"))))),
      body),
  ]);

  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(changed, 150);
  });
  for (const each of [operation, longer, since, failed]) each.addEventListener("change", changed);

  function changed() {
    clearTimeout(typing);
    wanted = { image: search.value.trim(), operation: operation.value, longer: longer.value, since: since.value, failed: failed.checked ? "1" : "" };
    app.set(place([""], wanted));
    load();
  }

  function settle() {
    if (document.activeElement !== search) search.value = wanted.image || "";
    operation.value = wanted.operation || "";
    longer.value = wanted.longer || "";
    since.value = wanted.since || "";
    failed.checked = Boolean(wanted.failed);
  }

  async function load() {
    if (aborting) aborting.abort();
    aborting = new AbortController();
    try {
      const answer = await ask("traces", wanted, aborting.signal);
      app.tell("");
      render(answer);
    } catch (error) {
      if (error.name !== "AbortError") app.tell(error.message);
    }
  }

  function render(answer) {
    const { traces, now } = answer;
    const longest = Math.max(0, ...traces.map((each) => each.seconds));
    const filtered = Object.values(wanted).some(Boolean);
    const text = traces.length ? count(traces.length, "trace") : filtered ? "No trace is like this." : "No traces yet. Pull an image, and it is here.";
    if (said.textContent !== text) said.textContent = text;
    const found = traces.map((each) => {
      const known = rows.get(each.id);
      const row = known || { element: make("tr", { role: "row" }), cells: null };
      rows.set(each.id, row);
      drawn(row, each, longest, now);
      return row.element;
    });
    const kept = new Set(traces.map((each) => each.id));
    for (const id of rows.keys()) {
      if (!kept.has(id)) {
        rows.delete(id);
        if (chosen.includes(id)) choose(id, false);
      }
    }
    // Only what moved is moved: a row that is moved loses the focus.
    found.forEach((element, index) => {
      if (body.children[index] !== element) body.insertBefore(element, body.children[index] || null);
    });
    while (body.children.length > found.length) body.lastElementChild.remove();
    last = answer;
    judge();
  }

  // Where the time of the traces went that are seen, and took long enough to ask.
  async function judge() {
    if (judging || stopped) return;
    const wanted = [...rows.values()].filter((row) => row.wants && seen(row.element)).slice(0, TOGETHER).map((row) => row.wants);
    if (!wanted.length) return;
    judging = true;
    try {
      const found = await ask("causes", { of: wanted.join(",") });
      for (const key of wanted) causes.set(key, found[key.slice(0, 32)] || { sentence: "", shares: [] });
    } catch {
      return; // the next list asks again
    } finally {
      judging = false;
    }
    if (!stopped) render(last);
  }

  function seen(element) {
    const box = element.getBoundingClientRect();
    return box.bottom > 0 && box.top < window.innerHeight;
  }

  function drawn(row, each, longest, now) {
    const key = JSON.stringify([each, longest, ago(each.began, now), causes.has(`${each.id}.${each.spans}`)]);
    if (row.key === key) return;
    row.key = key;
    const attributes = each.attributes;
    const name = each.image || String(attributes["container.id"] || "") || each.name;
    const [before, last] = each.image ? imageParts(each.image) : ["", name];
    if (!row.link) {
      row.pick = make("input", { type: "checkbox", on: { change: () => choose(each.id, row.pick.checked) } });
      row.link = make("a", { href: place(["trace", each.id]) });
      row.cells = ["pick", "when", "what", "name", "took", "mostly", "bytes number", "layers number", "outcome"].map((kind) => make("td", { role: "cell", class: kind }));
      row.cells[0].append(row.pick);
      row.cells[3].append(row.link);
      add(row.element, row.cells);
    }
    row.pick.checked = chosen.includes(each.id);
    row.pick.setAttribute("aria-label", `Compare ${each.operation || each.name} ${name} of ${moment(each.began, now)}`);
    const [, when, what, , took, mostly, fetched, layers, outcome] = row.cells;
    fill(when, make("time", { title: ago(each.began, now) }, moment(each.began, now)));
    fill(what, each.operation || "call");
    fill(row.link, before && make("span", { class: "dim" }, before), make("strong", {}, last));
    row.link.title = name;
    const found = causes.get(`${each.id}.${each.spans}`);
    const shares = found ? found.shares : [["unknown", 1]];
    row.wants = !found && each.seconds >= LEAST ? `${each.id}.${each.spans}` : "";
    took.title = found ? found.sentence : "";
    fill(mostly, found && shares[0] && [make("i", { class: `swatch k-${shares[0][0]}`, "aria-hidden": "true" }), `${shares[0][0]} ${percent(shares[0][1])}`]);
    mostly.title = took.title;
    fill(took, make("span", { class: "bar", "aria-hidden": "true" }, make("span", { css: { width: `${longest ? Math.max(0.5, (each.seconds / longest) * 100) : 0}%` } },
      shares.map(([kind, share]) => make("i", { class: `k-${kind}`, css: { "flex-grow": share } })))),
      make("span", { class: "number" }, duration(each.seconds)));
    fill(fetched, attributes["splitd.bytes"] === undefined ? "" : bytes(Number(attributes["splitd.bytes"])));
    const all = attributes["splitd.layers"];
    fill(layers, all === undefined ? "" : `${all - (attributes["splitd.layers.present"] || 0)} of ${all}`);
    layers.title = all === undefined ? "" : `${attributes["splitd.layers.present"] || 0} were there already`;
    const word = each.outcome || (each.errors ? "errors" : "");
    fill(outcome, word && make("span", { class: `word ${word === "failed" || word === "errors" ? "bad" : ["ok", "cancelled"].includes(word) ? word : ""}` }, word));
  }

  function choose(id, on) {
    const at = chosen.indexOf(id);
    if (on && at < 0) chosen.push(id);
    if (!on && at >= 0) chosen.splice(at, 1);
    while (chosen.length > 2) chosen.shift();
    for (const [each, row] of rows) row.pick.checked = chosen.includes(each);
    const both = chosen.length === 2;
    comparing.textContent = both ? "Compare" : chosen.length ? "Choose one more" : "Compare two";
    comparing.setAttribute("aria-disabled", String(!both));
    if (both) comparing.href = place(["compare", ...chosen]);
    else comparing.removeAttribute("href");
  }

  settle();
  window.addEventListener("scroll", judge, { passive: true });
  const repeating = repeated(load, EVERY);
  return {
    update(next) {
      wanted = { ...next };
      settle();
      load();
    },
    stop() {
      stopped = true;
      window.removeEventListener("scroll", judge);
      repeating.stop();
      clearTimeout(typing);
      if (aborting) aborting.abort();
    },
  };
}

function choice(id, options) {
  return make("select", { id }, options.map(([value, text]) => make("option", { value }, text)));
}

function labelled(text, control) {
  return make("label", { for: control.id }, make("span", { class: "hidden" }, text), control);
}
