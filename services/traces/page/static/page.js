// The address (after #) says what is shown, so that links can be shared and Back works. Each view is a function that
// fills an element: it gets the parts of the path and what is set, and returns what stops it.

import { compare } from "./compare.js";
import { fill, make } from "./dom.js";
import { list } from "./list.js";
import { live } from "./live.js";
import { node } from "./node.js";
import { trace } from "./trace.js";

const VIEWS = { "": list, trace, compare, live, node };
const TITLES = { "": "Traces", trace: "Trace", compare: "Comparison", live: "Live", node: "Node" };

const main = document.getElementById("main");
const notice = document.getElementById("notice");
let stop = null;
let shown = "";

export function parsed(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  return { parts, values: Object.fromEntries(new URLSearchParams(query)) };
}

const app = {
  // Changes the address without leaving the view.
  set(hash) {
    if (hash !== location.hash) history.replaceState(null, "", hash);
    shown = location.hash;
  },
  go(hash) {
    location.hash = hash;
  },
  title(text) {
    document.title = `${text} – splitd`;
  },
  // A line above the view: what went wrong, or nothing.
  tell(text) {
    notice.hidden = !text;
    if (notice.textContent !== text) notice.textContent = text;
  },
};

let view = null;

function show(first = false) {
  const { parts, values } = parsed(location.hash);
  const name = parts[0] in VIEWS ? parts[0] : "";
  const path = parts.join("/");
  shown = location.hash;
  if (view && view.path === path && view.update) {
    view.update(values);
    return;
  }
  if (stop) stop();
  app.tell("");
  app.title(TITLES[name]);
  for (const link of document.querySelectorAll("[data-page]")) {
    const here = link.dataset.page === (name || "list");
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const host = make("div", { class: `view ${name || "list"}` });
  fill(main, host);
  window.scrollTo(0, 0);
  const begun = VIEWS[name](host, parts.slice(1), values, app) || {};
  stop = begun.stop || null;
  view = { path, update: begun.update };
  if (!first) main.focus({ preventScroll: true });
}

window.addEventListener("hashchange", () => {
  if (location.hash !== shown) show();
});
window.addEventListener("popstate", () => {
  if (location.hash !== shown) show();
});
document.querySelector("[data-skip]").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
show(true);
