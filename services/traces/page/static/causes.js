// The bar of causes and its table, and the strip that shows them along the time.

import { make } from "./dom.js";
import { duration, percent } from "./format.js";

// A bar with a part for each cause, as wide as its share. The table beside it says the same in words.
export function causeBar(causes) {
  const parts = causes.filter((each) => each.share > 0);
  return make("div", { class: "causes", "aria-hidden": "true" },
    parts.map((each) => make("i", { class: `k-${each.kind}`, css: { "flex-grow": Math.max(each.share, 0.002) }, title: `${each.what}: ${duration(each.seconds)}` },
      each.share > 0.09 && make("b", {}, `${each.kind} ${duration(each.seconds)}`))));
}

export function causeTable(causes, most = 6) {
  const shown = causes.filter((each) => each.seconds > 0).slice(0, most);
  const rest = causes.filter((each) => each.seconds > 0).slice(most);
  const row = (kind, what, seconds, share) => make("tr", {},
    make("th", { scope: "row" }, make("i", { class: `swatch k-${kind}`, "aria-hidden": "true" }), kind),
    make("td", { class: "number" }, duration(seconds)), make("td", { class: "number dim" }, percent(share)), make("td", { class: "words" }, what));
  return make("table", { class: "reasons", "aria-label": "Where the time went" },
    make("tbody", {}, shown.map((each) => row(each.kind, each.what, each.seconds, each.share)),
      rest.length > 0 && row("unknown", `${rest.length} more causes`, rest.reduce((sum, each) => sum + each.seconds, 0), rest.reduce((sum, each) => sum + each.share, 0))));
}
