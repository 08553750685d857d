// What is under way: each operation with the place where it stands, and who holds what it waits for.

import { ask, repeated } from "./api.js";
import { add, fill, make, place } from "./dom.js";
import { about, colours, count, duration, imageParts, layer, process, spanName } from "./format.js";

const EVERY = 1000;

export function live(host, _, values, app) {
  const said = make("p", { class: "count" });
  const body = make("div", { class: "operations" });
  let stopped = false;
  add(host, [make("h1", {}, "Under way"), said, body]);

  async function load() {
    try {
      const answer = await ask("live");
      if (stopped) return;
      app.tell("");
      const { operations } = answer;
      said.textContent = operations.length ? count(operations.length, "operation") : "Nothing is under way that takes longer than a second.";
      const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.trace : "";
      fill(body, operations.map(operation));
      if (focused) for (const each of body.querySelectorAll("[data-trace]")) if (each.dataset.trace === focused) each.focus({ preventScroll: true });
    } catch (error) {
      if (stopped) return;
      app.tell(error.message);
    }
  }

  const repeating = repeated(load, EVERY);
  return {
    stop() {
      stopped = true;
      repeating.stop();
    },
  };
}

// With its layer, which the words of a wait may leave out.
function what(stage) {
  const number = stage.attributes["splitd.layer"];
  const told = about(stage.attributes);
  return number === undefined || told.startsWith(layer(number)) ? told : `${layer(number)}${told ? `: ${told}` : ""}`;
}

function operation(each) {
  const [before, last] = imageParts(each.image);
  const colour = colours(each.stages.map((stage) => stage.service));
  return make("article", { class: "operation" },
    make("h2", {}, make("a", { href: place(["trace", each.trace]), "data-trace": each.trace }, make("span", { class: "operation" }, each.operation), " ", make("span", { class: "dim" }, before), make("strong", {}, last)),
      make("span", { class: "number" }, duration(each.seconds))),
    make("table", { class: "stages", "aria-label": "Where it stands" }, make("tbody", {}, each.stages.map((stage) => make("tr", {},
      make("td", { class: "number" }, duration(stage.seconds)),
      make("td", {}, make("i", { class: `swatch p-${colour(stage.service)}`, "aria-hidden": "true" }), process(stage.service)),
      make("th", { scope: "row" }, spanName(stage.name)),
      make("td", { class: "words" }, what(stage), stage.held.length > 0 && make("span", { class: "dim" }, ` held by ${stage.held.join(", ")}`)))))));
}
