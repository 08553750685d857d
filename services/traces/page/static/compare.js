// Two operations: what each was doing along its time, on one scale, then where the difference is.

import { ask } from "./api.js";
import { add, fill, make, place } from "./dom.js";
import { duration, imageParts, moment, spanName } from "./format.js";

const SMALL = 0.004; // of the longer operation: smaller rows are shown together

export function compare(host, [a, b], _, app) {
  const aborting = new AbortController();
  fill(host, make("p", { class: "dim", role: "status" }, "Reading both traces"));
  ask(`compare/${encodeURIComponent(a)}/${encodeURIComponent(b)}`, {}, aborting.signal).then((found) => render(host, found), (error) => {
    if (error.name === "AbortError") return;
    fill(host);
    app.tell(error.message);
  });
  return { stop: () => aborting.abort() };
}

function render(host, { first, second, sentence, rows }) {
  const longest = Math.max(first.wall, second.wall, 1e-9);
  const [told, small] = [true, false].map((large) => rows.filter((row) => Math.max(row.a, row.b) >= longest * SMALL === large));
  const most = Math.max(...rows.map((row) => Math.abs(row.b - row.a)), 1e-9);
  fill(host,
    make("header", { class: "verdict" }, make("h1", {}, "Comparison"), make("p", { class: "sentence" }, sentence)),
    make("div", { class: "sides" }, side("A", first, longest), side("B", second, longest)),
    legend(first, second),
    make("table", { class: "stages plain", "aria-label": "Stage by stage" },
      make("thead", {}, make("tr", {}, ["Stage", "Cause", "A", "B", "Difference", ""].map((head, index) => make("th", { scope: "col", class: index > 1 && index < 5 ? "number" : "" }, head || make("span", { class: "hidden" }, "As a bar"))))),
      make("tbody", {}, told.map((row, index) => line(row, index > 0 && told[index - 1].stage === row.stage, most)),
        small.length > 0 && line(together(small), false, most)),
      make("tfoot", {}, make("tr", {}, make("th", { scope: "row" }, "In all"), make("td"), make("td", { class: "number" }, duration(first.wall)), make("td", { class: "number" }, duration(second.wall)), make("td", { class: "number" }, signed(second.wall - first.wall)), make("td", { class: "side" })))));
}

function side(letter, each, longest) {
  const [before, last] = imageParts(each.image);
  return make("section", { class: "one", "aria-label": letter },
    make("h2", {}, make("span", { class: "letter" }, letter), make("a", { href: place(["trace", each.id]) }, make("span", { class: "operation" }, each.operation), " ", make("span", { class: "dim" }, before), make("strong", {}, last)),
      make("span", { class: "dim" }, ` ${moment(each.began)}`), each.outcome && each.outcome !== "ok" && make("span", { class: "word bad" }, each.outcome)),
    make("div", { class: "along" },
      make("div", { class: "strip", "aria-hidden": "true" }, each.path.map(([, start, end, cause]) => {
        const { kind = "unknown", what = "" } = each.causes[cause] || {};
        return make("i", { class: `k-${kind}`, title: `${what}: ${duration((end - start) / 1e6)}`, css: { left: `${(start / 1e6 / longest) * 100}%`, width: `${((end - start) / 1e6 / longest) * 100}%` } });
      })),
      make("span", { class: "number" }, duration(each.wall))),
    make("p", { class: "dim" }, each.sentence));
}

function legend(first, second) {
  const kinds = [...new Set([...first.causes, ...second.causes].filter((each) => each.seconds > 0).map((each) => each.kind))];
  return make("p", { class: "legend" }, kinds.map((kind) => make("span", { class: "sign" }, make("i", { class: `swatch k-${kind}`, "aria-hidden": "true" }), kind)));
}

function line(row, same, most) {
  const difference = row.b - row.a;
  return make("tr", { class: same ? "same" : "" },
    make("th", { scope: "row" }, make("span", { class: same ? "again" : "" }, row.stage)),
    make("td", {}, make("i", { class: `swatch k-${row.kind}`, "aria-hidden": "true" }), row.part ? `${row.kind}: ${spanName(row.part)}` : `${row.count} causes`),
    make("td", { class: "number", "data-head": "A" }, duration(row.a)), make("td", { class: "number", "data-head": "B" }, duration(row.b)),
    make("td", { class: `number ${Math.abs(difference) >= most / 2 ? "strong" : ""}`, "data-head": "Difference" }, signed(difference)),
    make("td", { class: "side", "aria-hidden": "true" }, make("i", { class: difference > 0 ? "longer" : "shorter", css: { width: `${(Math.abs(difference) / most) * 50}%` } })));
}

function together(rows) {
  const sum = (side) => rows.reduce((all, row) => all + row[side], 0);
  return { stage: "smaller ones", kind: "unknown", part: "", count: rows.length, a: sum("a"), b: sum("b") };
}

function signed(seconds) {
  return Math.abs(seconds) < 0.0005 ? "0" : `${seconds > 0 ? "+" : "−"}${duration(Math.abs(seconds))}`;
}
