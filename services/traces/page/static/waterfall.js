// The waterfall: an overview, an axis, and a row for each node of the tree. Rows exist only where they are seen, so a
// trace of thousands of spans is as quick as one of fifty.
//
// Times are microseconds since the root began. The *view* is the part of them that is shown.

import { add, drawn, fill, make } from "./dom.js";
import { about, duration, process, spanName } from "./format.js";
import { isWait, reveal, rows } from "./tree.js";

const SHORTEST = 20; // µs of the shortest view
const AROUND = 12; // rows beyond the window that exist too
const KINDS = ["network", "registry", "mirror", "peer", "cpu", "disk", "lock", "queue", "client", "runtime", "container", "verifier", "node", "unknown"];

export class Waterfall {
  // `told` has `view(from, to)`, `focus(node)`, `hover(node)`, and `all()`, which is to want all spans; `colour(service)` is a name for the style sheet.
  constructor(trace, tree, colour, told) {
    this.trace = trace;
    this.tree = tree;
    this.colour = colour;
    this.told = told;
    this.whole = tree.whole;
    this.view = { ...tree.whole };
    this.wanted = null;
    this.at = -1;
    this.shown = new Map();
    this.pending = 0;
    this.dim = "";
    this.element = this.make();
    this.observer = new ResizeObserver(() => this.measure());
    this.observer.observe(this.body);
    this.observer.observe(this.overview);
    this.scrolled = () => this.later();
    window.addEventListener("scroll", this.scrolled, { passive: true });
    this.update();
  }

  stop() {
    this.observer.disconnect();
    window.removeEventListener("scroll", this.scrolled);
    cancelAnimationFrame(this.pending);
  }

  make() {
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.window = make("div", { class: "window", "aria-hidden": "true" });
    this.overview = make("div", { class: "overview" }, this.canvas, this.window);
    this.ticks = make("div", { class: "ticks", "aria-hidden": "true" });
    this.lines = make("div", { class: "lines", "aria-hidden": "true" });
    this.path = drawn("svg", { class: "path", "aria-hidden": "true" });
    this.brush = make("div", { class: "brush", "aria-hidden": "true", hidden: true });
    this.pointer = make("div", { class: "pointer", "aria-hidden": "true", hidden: true });
    this.layer = make("div", { class: "layer", "aria-hidden": "true" }, this.path, this.brush, this.pointer);
    this.body = make("div", { class: "rows", role: "tree", tabindex: "0", "aria-label": "Spans", "aria-describedby": "keys" });
    this.empty = make("p", { class: "none", hidden: true }, "No span is like this.");
    this.body.addEventListener("pointerdown", () => {
      this.pressed = true;
      setTimeout(() => (this.pressed = false));
    });
    this.body.addEventListener("keydown", (event) => this.key(event));
    this.body.addEventListener("click", (event) => this.click(event));
    this.body.addEventListener("dblclick", (event) => this.dblclick(event));
    this.body.addEventListener("focus", () => {
      // What a mouse presses is focused by the click; if rows moved before, it would be another one.
      if (this.at < 0 && !this.pressed) this.focus(0);
      else this.paint();
    });
    this.body.addEventListener("blur", () => this.paint());
    this.body.addEventListener("pointerover", (event) => this.hover(this.nodeAt(event)));
    this.body.addEventListener("pointerleave", () => {
      this.hover(null);
      this.pointer.hidden = true;
    });
    this.body.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.dragging(this.body, (event) => this.lane(event.clientX), () => this.view, true);
    this.dragging(this.overview, (event) => this.fraction(this.overview, event.clientX), () => this.whole, false);
    return make("div", { class: "waterfall" },
      make("div", { class: "head" },
        this.overview,
        make("div", { class: "axis" }, make("span", { class: "first" }, "Span"), make("span", { class: "second" }, "Took"), this.ticks)),
      make("div", { class: "field" }, this.lines, this.body, this.layer, this.empty));
  }

  // ------------------------------------------------------------------ what is shown

  setWanted(wanted) {
    const node = this.list && this.list[this.at];
    this.wanted = wanted;
    this.update(node);
  }

  setDim(service) {
    this.dim = service;
    this.shown.clear();
    this.body.replaceChildren();
    this.paint();
  }

  // Makes the list of rows anew, and keeps the focus where it was.
  update(node = this.list && this.list[this.at]) {
    this.list = rows(this.tree, this.wanted);
    this.places = new Map(this.list.map((each, index) => [each, index]));
    this.at = node ? this.placeOf(node) : this.at < 0 ? -1 : Math.min(this.at, this.list.length - 1);
    this.segments = (this.trace.path || []).map(([index, start, end, kind]) => ({ row: this.placeOf(this.tree.nodeOf[index]), start, end, kind }));
    this.empty.hidden = this.list.length > 0;
    this.shown.clear();
    this.body.replaceChildren();
    this.drawOverview();
    this.measure();
  }

  placeOf(node) {
    for (let each = node; each; each = each.parent) {
      const place = this.places.get(each);
      if (place !== undefined) return place;
    }
    return -1;
  }

  setView(from, to, tell = true) {
    const length = Math.min(this.whole.to - this.whole.from, Math.max(SHORTEST, to - from));
    const begin = Math.min(Math.max(this.whole.from, from), this.whole.to - length);
    if (begin === this.view.from && begin + length === this.view.to) return;
    this.view = { from: begin, to: begin + length };
    this.later();
    if (tell) this.told.view(this.isWhole() ? null : this.view);
  }

  isWhole() {
    return this.view.from <= this.whole.from && this.view.to >= this.whole.to;
  }

  // Zooms by a factor, around a moment (default: the middle).
  zoom(factor, around = (this.view.from + this.view.to) / 2) {
    const length = (this.view.to - this.view.from) / factor;
    const share = (around - this.view.from) / (this.view.to - this.view.from);
    this.setView(around - share * length, around + (1 - share) * length);
  }

  pan(share) {
    const by = (this.view.to - this.view.from) * share;
    this.setView(this.view.from + by, this.view.to + by);
  }

  zoomTo(node) {
    const length = Math.max(node.end - node.start, SHORTEST);
    this.setView(node.start - length * 0.08, node.end + length * 0.08);
  }

  all() {
    this.setView(this.whole.from, this.whole.to);
  }

  // ------------------------------------------------------------------ focus and hover

  focus(place, scroll = true) {
    if (!this.list.length) return;
    this.at = Math.max(0, Math.min(place, this.list.length - 1));
    if (scroll) this.bring(this.at);
    this.paint();
    this.told.focus(this.list[this.at]);
  }

  // Focuses the row of a span, which is opened for it.
  go(index) {
    const node = this.tree.nodeOf[index];
    if (this.wanted && this.places.get(node) === undefined) this.told.all();
    reveal(this.tree, index);
    this.update(node);
    this.focus(this.placeOf(node));
    this.body.focus({ preventScroll: true });
  }

  bring(place) {
    const top = this.body.getBoundingClientRect().top + place * this.high;
    const head = this.element.querySelector(".head").getBoundingClientRect().bottom;
    const foot = window.innerHeight - (this.covered ? this.covered() : 0);
    if (top < head) window.scrollBy(0, top - head - this.high);
    else if (top + this.high > foot) window.scrollBy(0, top + this.high - foot + this.high);
  }

  hover(node) {
    if (node === this.hovered) return;
    this.hovered = node;
    this.told.hover(node);
  }

  nodeAt(event) {
    const row = event.target.closest && event.target.closest("[data-row]");
    return row ? this.list[Number(row.dataset.row)] : null;
  }

  // ------------------------------------------------------------------ keys, pointers

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const node = this.list[this.at];
    const page = Math.max(1, Math.floor(window.innerHeight / this.high / 2));
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const zooms = {
      "+": () => this.zoom(2, this.around()), "=": () => this.zoom(2, this.around()), "-": () => this.zoom(0.5, this.around()),
      w: () => this.zoom(2, this.around()), s: () => this.zoom(0.5, this.around()), a: () => this.pan(-0.25), d: () => this.pan(0.25),
      0: () => this.all(), Escape: () => this.all(), f: () => node && this.zoomTo(node),
      n: () => this.along(1), N: () => this.along(-1), p: () => this.along(-1),
    };
    if (event.key in moves) {
      this.focus(Math.min(Math.max(this.at + moves[event.key], 0), this.list.length - 1));
    } else if (event.key in zooms) {
      zooms[event.key]();
    } else if (event.key === "Enter" || event.key === " ") {
      if (node && node.fold) this.toggle(node);
      else if (node) this.zoomTo(node);
    } else if (event.key === "ArrowRight" && node) {
      if (node.children.length && !node.open && !this.wanted) this.toggle(node);
      else if (this.list[this.at + 1] && this.list[this.at + 1].parent === node) this.focus(this.at + 1);
    } else if (event.key === "ArrowLeft" && node) {
      if (node.children.length && node.open && !this.wanted) this.toggle(node);
      else if (node.parent) this.focus(this.placeOf(node.parent));
    } else {
      return;
    }
    event.preventDefault();
  }

  // The moment around which keys zoom: the middle of the focused span, where that is in the view.
  around() {
    const node = this.list[this.at];
    const middle = node ? (Math.max(node.start, this.view.from) + Math.min(node.end, this.view.to)) / 2 : NaN;
    return middle >= this.view.from && middle <= this.view.to ? middle : (this.view.from + this.view.to) / 2;
  }

  // The next or last row of the critical path, in the order of time.
  along(step) {
    const places = this.segments.filter((each, index, all) => each.row >= 0 && (!index || each.row !== all[index - 1].row));
    if (!places.length) return;
    let now = places.findIndex((each) => each.row === this.at && each === this.stood);
    if (now < 0) now = places.findIndex((each) => each.row === this.at);
    const next = places[now < 0 ? (step > 0 ? 0 : places.length - 1) : Math.min(Math.max(now + step, 0), places.length - 1)];
    this.stood = next;
    this.focus(next.row);
  }

  toggle(node) {
    if (!node.children.length || this.wanted) return;
    node.open = !node.open;
    this.update(node);
    this.focus(this.placeOf(node), false);
  }

  click(event) {
    if (this.dragged) return;
    const node = this.nodeAt(event);
    if (!node) return;
    if (event.target.closest(".twisty") || node.fold) this.toggle(node);
    this.focus(this.placeOf(node), false);
  }

  dblclick(event) {
    const node = this.nodeAt(event);
    if (node && !node.fold && !event.target.closest(".twisty")) this.zoomTo(node);
  }

  // With Ctrl (as browsers zoom, and as trackpads say pinching) it zooms, sideways it pans; else the page scrolls.
  wheel(event) {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.004)), this.moment(this.lane(event.clientX), this.view));
    } else if (Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey) {
      event.preventDefault();
      this.pan((event.deltaX || event.deltaY) / Math.max(this.wide, 1));
    }
  }

  moment(share, view) {
    return view.from + share * (view.to - view.from);
  }

  lane(x) {
    const box = this.layer.getBoundingClientRect();
    return (x - box.left) / Math.max(box.width, 1);
  }

  fraction(element, x) {
    const box = element.getBoundingClientRect();
    return (x - box.left) / Math.max(box.width, 1);
  }

  // A mouse chooses a part of the time by dragging; one finger pans, two zoom.
  dragging(element, share, view, brush) {
    const fingers = new Map();
    let began = null;
    element.addEventListener("pointerdown", (event) => {
      this.dragged = false;
      const at = share(event);
      if (event.button || at < 0 || at > 1 || event.target.closest(".twisty")) return;
      fingers.set(event.pointerId, event.clientX);
      began = { at, x: event.clientX, view: { ...view() }, kind: event.pointerType };
    });
    element.addEventListener("pointermove", (event) => {
      if (brush) this.point(event);
      if (!began) return;
      if (fingers.size === 2 && fingers.has(event.pointerId)) {
        const [a, b] = fingers.values();
        fingers.set(event.pointerId, event.clientX);
        const [c, d] = fingers.values();
        if (Math.abs(a - b) > 8 && Math.abs(c - d) > 8) this.zoom(Math.abs(c - d) / Math.abs(a - b), this.moment(share({ clientX: (c + d) / 2 }), view()));
        this.dragged = true;
        return;
      }
      if (Math.abs(event.clientX - began.x) < 5 && !this.dragged) return;
      if (!this.dragged) element.setPointerCapture(event.pointerId);
      this.dragged = true;
      if (began.kind === "touch" && brush) {
        const by = (share(event) - began.at) * (began.view.to - began.view.from);
        this.setView(began.view.from - by, began.view.to - by);
        return;
      }
      const [left, right] = [began.at, Math.min(1, Math.max(0, share(event)))].sort((a, b) => a - b);
      this.showBrush(brush, left, right);
    });
    const done = (event) => {
      fingers.delete(event.pointerId);
      if (began && this.dragged && !(began.kind === "touch" && brush) && event.type === "pointerup") {
        const [left, right] = [began.at, Math.min(1, Math.max(0, share(event)))].sort((a, b) => a - b);
        if (right - left > 0.002) this.setView(this.moment(left, began.view), this.moment(right, began.view));
      }
      began = null;
      this.brush.hidden = true;
      this.later();
    };
    element.addEventListener("pointerup", done);
    element.addEventListener("pointercancel", done);
    if (!brush) element.addEventListener("dblclick", () => this.all());
  }

  showBrush(brush, left, right) {
    const element = brush ? this.brush : this.window;
    element.hidden = false;
    element.style.setProperty("left", `${left * 100}%`);
    element.style.setProperty("width", `${(right - left) * 100}%`);
  }

  // The moment below the mouse, as a line with its time.
  point(event) {
    const at = this.lane(event.clientX);
    this.pointer.hidden = at < 0 || at > 1 || event.pointerType === "touch";
    if (this.pointer.hidden) return;
    this.pointer.style.setProperty("left", `${at * 100}%`);
    this.pointer.classList.toggle("right", at > 0.8);
    const box = this.layer.getBoundingClientRect();
    this.pointer.style.setProperty("--y", `${Math.max(0, event.clientY - box.top)}px`);
    fill(this.pointer, make("span", {}, stamp(this.moment(at, this.view), this.view)));
  }

  // ------------------------------------------------------------------ painting

  later() {
    if (!this.pending) this.pending = requestAnimationFrame(() => this.paint());
  }

  measure() {
    this.high = Number.parseFloat(getComputedStyle(this.element).getPropertyValue("--high")) || 26;
    this.body.style.setProperty("height", `${this.list.length * this.high}px`);
    this.wide = this.layer.clientWidth;
    this.drawOverview();
    this.paint();
  }

  paint() {
    cancelAnimationFrame(this.pending);
    this.pending = 0;
    const top = this.body.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(-top / this.high) - AROUND);
    const last = Math.min(this.list.length - 1, Math.ceil((window.innerHeight - top) / this.high) + AROUND);
    const wanted = new Set();
    for (let index = first; index <= last; index += 1) wanted.add(index);
    if (this.at >= 0) wanted.add(this.at);
    for (const [index, row] of this.shown) {
      if (!wanted.has(index)) {
        row.element.remove();
        this.shown.delete(index);
      }
    }
    for (const index of [...wanted].sort((a, b) => a - b)) {
      let row = this.shown.get(index);
      if (!row) {
        row = this.row(index);
        this.shown.set(index, row);
        this.body.append(row.element);
      }
      this.paintRow(row, index);
    }
    if (this.at >= 0) this.body.setAttribute("aria-activedescendant", `row-${this.at}`);
    else this.body.removeAttribute("aria-activedescendant");
    this.paintAxis();
    this.paintPath(first, last);
    this.window.hidden = this.isWhole();
    const length = this.whole.to - this.whole.from;
    this.showWindow((this.view.from - this.whole.from) / length, (this.view.to - this.whole.from) / length);
  }

  showWindow(left, right) {
    this.window.style.setProperty("left", `${left * 100}%`);
    this.window.style.setProperty("width", `${(right - left) * 100}%`);
  }

  row(index) {
    const node = this.list[index];
    const { span } = node;
    const inner = [];
    const waits = !node.fold && isWait(span);
    let text;
    let detail = "";
    if (node.fold) {
      text = `${node.fold.length} short spans`;
      for (const each of node.fold) inner.push({ element: this.bar(each), node: each });
    } else {
      text = spanName(span.name);
      detail = about(span.attributes);
      inner.push({ element: this.bar(node), node });
      node.chain.slice(1).forEach((each, depth) => {
        const part = this.tree.spans[each];
        const element = make("i", { class: `bar inner p-${this.colour(this.trace.services[part.service])}`, css: { "--inset": `${Math.min(depth + 1, 3) * 2 + 1}px` } });
        inner.push({ element, node: part });
      });
    }
    const beside = !node.fold && (waits || node.error) ? (node.error ? span.message || "failed" : detail || "waits") : "";
    const tag = make("span", { class: "tag" }, beside);
    const lane = make("span", { class: "lane" }, inner.map((each) => each.element), tag);
    const service = node.fold ? "" : [...new Set(node.chain.map((each) => process(this.trace.services[this.tree.spans[each].service])))].join(" → ");
    const open = node.children.length > 0 && (node.open || Boolean(this.wanted)) && !node.fold;
    const bold = node.onPath ? "b" : "span";
    const element = make("div", {
      class: `row${node.onPath ? " on" : ""}${node.error ? " bad" : ""}${node.fold ? " fold" : ""}${open ? " open" : ""}`, role: "treeitem", id: `row-${index}`, "data-row": index,
      "aria-level": node.depth + 1, "aria-setsize": this.list.length, "aria-posinset": index + 1,
      "aria-expanded": node.children.length ? String(node.open || Boolean(this.wanted)) : null,
      "aria-label": this.spoken(node, text, waits ? "" : detail, beside, service), css: { "--depth": Math.min(node.depth, 24) },
    },
    make("span", { class: "name" },
      make("span", { class: "twisty", "aria-hidden": "true" }, node.children.length && !this.wanted ? (node.open ? "▾" : "▸") : ""),
      !node.fold && make("i", { class: `swatch p-${this.colour(this.trace.services[span.service])}` }),
      make(bold, { class: "text" }, text), " ", detail && !waits && make("span", { class: "dim" }, detail), " ",
      this.folds(node) && make("span", { class: "more" }, `+${node.below}`)),
    " ", make("span", { class: "took" }, duration((node.end - node.start) / 1e6)), " ", lane);
    if (this.dim && !node.chain.some((each) => process(this.trace.services[this.tree.spans[each].service]) === this.dim)) element.classList.add("faint");
    element.title = `${text}${detail ? ` – ${detail}` : ""}${service ? ` (${service})` : ""}`;
    return { element, inner, tag, lane, node };
  }

  bar(node) {
    const { span } = node;
    const kinds = [`bar p-${this.colour(this.trace.services[span.service])}`];
    if (isWait(span)) kinds.push("wait");
    if (span.attributes && span.attributes["splitd.background"]) kinds.push("behind");
    if (node.error) kinds.push("bad");
    return make("i", { class: kinds.join(" ") });
  }

  // Whether a row says how many spans it stands for besides its own.
  folds(node) {
    return node.children.length > 0 && !node.open && !this.wanted && !node.fold;
  }

  // What is read of a row: what one sees, and then what only a picture says.
  spoken(node, text, detail, tag, service) {
    const more = this.folds(node) ? `+${node.below}` : "";
    const told = [[text, detail, more, duration((node.end - node.start) / 1e6), tag].filter(Boolean).join(" ")];
    if (service) told.push(service);
    told.push(`begins at ${duration(node.start / 1e6)}`);
    if (node.onPath) told.push("on the critical path");
    if (node.error) told.push("failed");
    return told.join(", ");
  }

  paintRow(row, index) {
    const { view } = this;
    const scale = 100 / (view.to - view.from);
    row.element.style.setProperty("top", `${index * this.high}px`);
    row.element.classList.toggle("here", index === this.at);
    row.element.setAttribute("aria-selected", String(index === this.at));
    for (const { element, node } of row.inner) {
      const left = (Math.max(node.start, view.from) - view.from) * scale;
      const right = (Math.min(node.end, view.to) - view.from) * scale;
      element.hidden = right < 0 || left > 100 || node.end < view.from;
      element.style.setProperty("left", `${left}%`);
      element.style.setProperty("width", `${Math.max(0, right - left)}%`);
    }
    const left = (Math.max(row.node.start, view.from) - view.from) * scale;
    const right = (Math.min(row.node.end, view.to) - view.from) * scale;
    row.tag.hidden = !row.tag.textContent || right < 0 || left > 100;
    const side = 100 - right >= 28 ? "after" : left >= 28 ? "before" : "over";
    row.tag.className = `tag ${side}`;
    if (side === "before") {
      row.tag.style.setProperty("right", `${100 - left}%`);
      row.tag.style.removeProperty("left");
    } else {
      row.tag.style.setProperty("left", `${side === "after" ? right : left}%`);
      row.tag.style.removeProperty("right");
    }
  }

  paintAxis() {
    const { from, to } = this.view;
    const step = nice((to - from) / Math.max(2, this.wide / 110));
    const ticks = [];
    const lines = [];
    for (let at = Math.ceil(from / step) * step; at <= to && ticks.length < 40; at += step) {
      const left = `${((at - from) / (to - from)) * 100}%`;
      if ((at - from) / (to - from) < 0.95) ticks.push(make("span", { css: { left } }, stamp(at, this.view)));
      lines.push(make("i", { css: { left } }));
    }
    fill(this.ticks, ticks);
    fill(this.lines, lines);
  }

  // The critical path as one line through the bars, from row to row. Pieces that are too short to be seen are left out:
  // zooming shows them.
  paintPath(first, last) {
    const { view, high, wide } = this;
    this.path.style.setProperty("top", `${first * high}px`);
    this.path.setAttribute("width", wide);
    this.path.setAttribute("height", Math.max(0, (last - first + 1) * high));
    const x = (time) => Math.min(wide + 2, Math.max(-2, ((time - view.from) / (view.to - view.from)) * wide)).toFixed(1);
    const y = (row) => ((row - first + 0.5) * high + this.sink()).toFixed(1);
    let line = "";
    let steps = "";
    let before = null;
    for (const each of this.segments) {
      if (each.row < 0 || ((each.end - each.start) / (view.to - view.from)) * wide < 1.5) continue;
      const joined = before && before.row !== each.row;
      const low = Math.min(each.row, before ? before.row : each.row);
      const top = Math.max(each.row, before ? before.row : each.row);
      if (each.end >= view.from && each.start <= view.to && top >= first && low <= last) {
        if (joined) steps += `M${x(each.start)} ${y(before.row)}V${y(each.row)}`;
        if (each.row >= first && each.row <= last) line += `M${x(each.start)} ${y(each.row)}H${x(each.end)}`;
      }
      before = each;
    }
    fill(this.path, steps && drawn("path", { d: steps, class: "step" }), line && [drawn("path", { d: line, class: "halo" }), drawn("path", { d: line, class: "line" })]);
  }

  // On a narrow screen the bar is in the lower half of its row.
  sink() {
    return Number.parseFloat(getComputedStyle(this.element).getPropertyValue("--sink")) || 0;
  }

  drawOverview() {
    const box = this.overview.getBoundingClientRect();
    if (!box.width) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(box.width * ratio);
    this.canvas.height = Math.round(box.height * ratio);
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(this.element);
    const colours = new Map();
    const colourOf = (name) => {
      if (!colours.has(name)) colours.set(name, style.getPropertyValue(name).trim());
      return colours.get(name);
    };
    const length = this.whole.to - this.whole.from;
    const strip = this.segments.length ? 7 : 0;
    const room = box.height - strip - 4;
    const each = Math.min(4, room / Math.max(this.list.length, 1));
    this.list.forEach((node, index) => {
      if (node.fold) return;
      pen.fillStyle = colourOf(`--p-${this.colour(this.trace.services[node.span.service])}`);
      pen.globalAlpha = node.children.length && node.open ? 0.4 : 1;
      pen.fillRect(((node.start - this.whole.from) / length) * box.width, 2 + index * each, Math.max(0.7, ((node.end - node.start) / length) * box.width), Math.max(0.6, each * 0.75));
    });
    pen.globalAlpha = 1;
    for (const { start, end, kind } of this.segments) {
      pen.fillStyle = colourOf(`--k-${KINDS.includes(kind) ? kind : "unknown"}`);
      pen.fillRect(((start - this.whole.from) / length) * box.width, box.height - strip, Math.max(0.5, ((end - start) / length) * box.width), strip);
    }
  }
}

function nice(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= step);
}

// A moment on the axis: its digits are those that the view needs.
function stamp(at, view) {
  const length = view.to - view.from;
  if (Math.abs(at) < 1e-9) return "0";
  if (Math.abs(at) >= 6e7 && length >= 2e6) {
    const seconds = at / 1e6;
    return `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(length < 2e7 ? 1 : 0).padStart(length < 2e7 ? 4 : 2, "0")}`;
  }
  if (length >= 5e5) return `${(at / 1e6).toFixed(length < 2e6 ? 2 : length < 2e7 ? 1 : 0)} s`;
  return `${(at / 1e3).toFixed(length < 2e3 ? 2 : length < 2e4 ? 1 : 0)} ms`;
}
