// All that is known of a span, for the panel beside the waterfall.

import { button, make, place } from "./dom.js";
import { bytes, duration, moment, process, spanName } from "./format.js";

const TIMES = [
  ["splitd.time.cpu_ms", "cpu", "on a processor"], ["splitd.time.runqueue_ms", "queue", "no processor free"],
  ["splitd.time.disk_ms", "disk", "the disk"], ["splitd.time.bytes_ms", "network", "no bytes"],
];

// `go(index)` focuses another span, `colour(service)` is its name for the style sheet.
export function details(trace, tree, node, colour, go) {
  if (!node) return [make("p", { class: "dim" }, "Point to a span, or choose one with the arrow keys.")];
  if (node.fold) {
    return [
      make("h2", {}, `${node.fold.length} short spans`),
      make("p", { class: "dim" }, "Each takes less than 0.4 % of the whole. Enter or a click shows them."),
      make("ul", { class: "plain" }, node.fold.slice(0, 20).map((each) => make("li", {}, button(spanName(each.span.name), () => go(each.span.index), { class: "link" }), ` ${duration((each.end - each.start) / 1e6)}`)),
        node.fold.length > 20 && make("li", { class: "dim" }, `and ${node.fold.length - 20} more`)),
    ];
  }
  return node.chain.map((index, at) => about(trace, tree, tree.spans[index], at > 0, colour, go)).flat();
}

function about(trace, tree, span, further, colour, go) {
  const service = trace.services[span.service];
  const attributes = span.attributes || {};
  const own = tree.path.get(span.index);
  const rows = [
    ["Process", [make("i", { class: `swatch p-${colour(service)}`, "aria-hidden": "true" }), process(service)]],
    ["Began at", [duration(span.start / 1e6), make("span", { class: "dim" }, ` ${moment(trace.began + span.start / 1e3)}`)]],
    [span.open ? "Took so far" : "Took", duration(span.length / 1e6)],
    own && ["Critical path", `${duration(own / 1e6)} of its own`],
    attributes["splitd.background"] && ["Background", "nobody waits for it"],
    attributes["splitd.folded.count"] && ["Calls left out", `${attributes["splitd.folded.count"]}, ${duration(attributes["splitd.folded.ms"] / 1e3)} in all`],
  ].filter(Boolean);
  const waits = (span.links || []).map((link) => holder(link, tree, go));
  return [
    make(further ? "h3" : "h2", {}, spanName(span.name)),
    span.error && make("p", { class: "bad" }, span.message || "failed"),
    make("dl", {}, rows.map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]), waits.length > 0 && [make("dt", {}, span.name.startsWith("wait.") ? "Waits for" : "Linked to"), make("dd", {}, waits)]),
    times(attributes),
    Object.keys(attributes).length > 0 && make("table", { class: "attributes", "aria-label": "Attributes" }, make("tbody", {},
      Object.entries(attributes).map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, written(name, value)))))),
    span.bare && make("p", { class: "dim" }, "This trace has more attributes than a page can hold; those of this span are not here."),
    (span.events || []).length > 0 && [make("h3", {}, "Events"), make("ol", { class: "plain" }, span.events.map((event) => make("li", {},
      make("span", { class: "number" }, duration(event.at / 1e6)), ` ${event.name}`, Object.entries(event.attributes).map(([name, value]) => make("div", { class: "dim" }, `${name}: ${written(name, value)}`)))))],
  ];
}

function holder(link, tree, go) {
  if (link.trace) return make("div", {}, make("a", { href: place(["trace", link.trace], { span: link.id }) }, "a span of another operation"));
  if (!(link.place >= 0)) return make("div", { class: "dim" }, `a span that is not here (${link.id})`);
  return make("div", {}, button(spanName(tree.spans[link.place].name), () => go(link.place), { class: "link" }));
}

// Where a worker's time went, as it measured it.
function times(attributes) {
  const parts = TIMES.map(([name, kind, text]) => ({ kind, text, ms: Number(attributes[name]) })).filter((each) => each.ms > 0);
  const whole = parts.reduce((sum, each) => sum + each.ms, 0);
  if (!whole) return null;
  return make("div", { class: "worker" },
    make("div", { class: "causes", "aria-hidden": "true" }, parts.map((each) => make("i", { class: `k-${each.kind}`, css: { "flex-grow": each.ms / whole } }))),
    make("ul", { class: "plain" }, parts.map((each) => make("li", {}, make("i", { class: `swatch k-${each.kind}`, "aria-hidden": "true" }), make("span", { class: "number" }, duration(each.ms / 1e3)), ` ${each.text}`))));
}

function written(name, value) {
  if (typeof value === "number" && /(^|[._])bytes($|\.present)|\.size$/.test(name)) return `${value.toLocaleString("en")} (${bytes(value)})`;
  if (value === null) return "none";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
