// The node's health: its processes, the registries that it asked, and what the store holds.

import { ask, repeated } from "./api.js";
import { add, fill, make, place } from "./dom.js";
import { ago, bytes, count, duration } from "./format.js";

const EVERY = 3000;

export function node(host, _, values, app) {
  const body = make("div");
  let stopped = false;
  add(host, [make("h1", {}, "Node"), body]);

  async function load() {
    try {
      const answer = await ask("health");
      if (stopped) return;
      app.tell(answer.trouble);
      fill(body, shown(answer));
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

function shown({ processes, registries, shadows, store, now }) {
  return [
    make("h2", {}, "Processes"),
    table("Processes", ["Process", "State", "Pid", "Up for", "Processor time", "Memory"], processes.map((each) => [
      each.name, state(!each.trouble && each.pid > 0, each.trouble || (each.pid ? "serves" : "does not run")),
      number(each.pid || ""), number(each.pid ? duration((now - each.began) / 1e3) : ""), number(each.pid ? duration(each.cpu) : ""), number(each.memory ? bytes(each.memory) : ""),
    ])),
    make("h2", {}, "Registries"),
    registries.length
      ? table("Registries", ["Registry", "State", "For", "Rate", "Last failure"], registries.map((each) => [
        each.address, state(each.state === "good", each.state), number(duration(Math.max(0, now - each.since) / 1e3)),
        number(each.throughput ? `${bytes(each.throughput)}/s` : ""), each.error,
      ]))
      : make("p", { class: "dim" }, "None was asked yet."),
    shadows.map(shadow),
    make("h2", {}, "Traces"),
    make("p", {}, `${count(store.traces, "trace")}, ${count(store.spans, "span")}, ${bytes(store.bytes)} on the disk`,
      store.traces > 0 && `; the oldest is of ${ago(store.oldest, now)}`, ". ",
      store.dropped > 0 ? make("strong", { class: "bad" }, `${count(store.dropped, "span")} dropped.`) : "No span was dropped."),
  ];
}

// A candidate that gets copies of the calls to a service: what it answers otherwise than ours.
function shadow({ route, address, trouble, methods }) {
  const different = methods.filter((each) => each.differences.length);
  return [
    make("h2", {}, `Shadow of ${route}`),
    make("p", {}, `Copies of its calls go to ${address}.`, trouble && make("strong", { class: "bad" }, ` ${trouble}`)),
    methods.length > 0 && table(`Shadow of ${route}`, ["Method", "Calls", "Same", "Different", "Skipped", "Dropped", "p50 ours, theirs", "p99 ours, theirs"], methods.map((each) => [
      each.name, number(each.calls), number(each.same), number(each.different), number(each.skipped), number(each.dropped),
      number(`${duration(each.ours[0])}, ${duration(each.theirs[0])}`), number(`${duration(each.ours[1])}, ${duration(each.theirs[1])}`),
    ])),
    different.flatMap(({ name, differences }) => differences.map((each) => make("section", { class: "difference" },
      make("p", {}, make("strong", {}, `${name}: ${each.field}`), ` differs in ${count(each.count, "call")}`),
      make("ul", {}, each.examples.map((example) => make("li", {}, `${example.request}: ours `, make("code", {}, example.ours), ", theirs ", make("code", {}, example.theirs),
        example.trace && [" (", make("a", { href: place(["trace", example.trace]) }, "trace"), ")"]))),
    ))),
  ];
}

function table(name, heads, rows) {
  return make("table", { class: "plain", "aria-label": name },
    make("thead", {}, make("tr", {}, heads.map((head, index) => make("th", { scope: "col", class: rows.length && isNumber(rows[0][index]) ? "number" : "" }, head)))),
    make("tbody", {}, rows.map((cells) => make("tr", {}, cells.map((cell, index) => (index ? make("td", { class: isNumber(cell) ? "number" : "", "data-head": heads[index] }, cell) : make("th", { scope: "row" }, cell)))))));
}

function isNumber(cell) {
  return cell instanceof Node && Boolean(cell.dataset.number);
}

function number(text) {
  return make("span", { "data-number": "1" }, text);
}

function state(good, word) {
  return make("span", { class: `word ${good ? "ok" : "bad"}` }, word);
}
