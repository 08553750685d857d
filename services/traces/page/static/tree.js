// The rows of a waterfall, made of a trace's spans. No elements here.
//
// A node stands for one span, or for a call on its way through processes: spans of the same method, each the only child
// of the one before. A *fold* stands for short spans that follow each other below one span. Nodes are open or closed;
// what is on the critical path, or long, is open at first.

const SMALL = 0.004; // of the whole: shorter ones are folded
const CLOSED = 0.02; // of the whole: what is shorter is closed at first
const ALL = 40; // a trace with no more spans than this is shown whole

export function build(trace) {
  const spans = trace.spans;
  const children = spans.map(() => []);
  const roots = [];
  spans.forEach((span, index) => {
    span.index = index;
    span.end = span.start + span.length;
    (span.parent < 0 ? roots : children[span.parent]).push(index);
  });
  const path = new Map();
  for (const [index, start, end] of trace.path || []) path.set(index, (path.get(index) || 0) + end - start);
  const from = Math.min(0, ...roots.map((each) => spans[each].start));
  let to = from + 1;
  for (const span of spans) if (span.end > to) to = span.end;
  const whole = { from: roots.length ? from : 0, to };
  const few = spans.length <= ALL;
  const tree = { spans, whole, roots: [], nodeOf: new Array(spans.length), path, size: 0 };

  // Without recursion: a trace may be as deep as it has spans.
  const work = roots.sort(byStart).map((index) => ({ index, parent: null }));
  const made = [];
  for (let at = 0; at < work.length; at += 1) {
    const { index, parent } = work[at];
    const chain = [index];
    let last = index;
    while (children[last].length === 1 && sameCall(spans[last], spans[children[last][0]])) {
      [last] = children[last];
      chain.push(last);
    }
    const span = spans[index];
    const node = {
      key: `${span.id}.${index}`, span, chain, parent, depth: parent ? parent.depth + 1 : 0, children: [],
      start: span.start, end: span.end, open: true, fold: null, onPath: chain.some((each) => path.has(each)),
      error: chain.some((each) => spans[each].error), below: 0, inside: children[last],
    };
    for (const each of chain) {
      tree.nodeOf[each] = node;
      node.end = Math.max(node.end, spans[each].end);
    }
    (parent ? parent.children : tree.roots).push(node);
    made.push(node);
    work.push(...children[last].sort(byStart).map((each) => ({ index: each, parent: node })));
  }
  for (let at = made.length - 1; at >= 0; at -= 1) {
    const node = made[at];
    for (const child of node.children) {
      node.below += child.below + child.chain.length;
      node.pathBelow = node.pathBelow || child.onPath || child.pathBelow;
      node.errorBelow = node.errorBelow || child.error || child.errorBelow;
    }
  }
  const length = whole.to - whole.from;
  for (const node of made) {
    node.children = few ? node.children : folded(node, length * SMALL);
    node.open = few || node.pathBelow || node.errorBelow || node.end - node.start >= length * CLOSED;
  }
  tree.size = made.length;
  return tree;

  function byStart(a, b) {
    return spans[a].start - spans[b].start || a - b;
  }
}

function sameCall(outer, inner) {
  const method = outer.attributes && outer.attributes["rpc.method"];
  return Boolean(method) && inner.attributes && inner.attributes["rpc.method"] === method
    && inner.attributes["rpc.service"] === outer.attributes["rpc.service"];
}

// The children of a node, with runs of three and more short ones as one fold.
function folded(node, small) {
  const result = [];
  let run = [];
  const flush = () => {
    if (run.length < 3) {
      result.push(...run);
    } else {
      const fold = {
        key: `fold.${run[0].key}`, span: null, chain: [], parent: node, depth: node.depth + 1, children: run, open: false, fold: run,
        start: run[0].start, end: Math.max(...run.map((each) => each.end)), onPath: false, error: false,
        below: run.reduce((sum, each) => sum + each.below + each.chain.length, 0),
      };
      for (const each of run) {
        each.parent = fold;
        deepen(each);
      }
      result.push(fold);
    }
    run = [];
  };
  for (const child of node.children) {
    if (child.end - child.start < small && !child.onPath && !child.pathBelow && !child.error && !child.errorBelow) run.push(child);
    else {
      flush();
      result.push(child);
    }
  }
  flush();
  return result;
}

function deepen(node) {
  const work = [node];
  while (work.length) {
    const each = work.pop();
    each.depth += 1;
    work.push(...each.children);
  }
}

// The rows that are shown: all that are below open nodes, or what `wanted` wants with all that it is part of.
export function rows(tree, wanted = null) {
  const result = [];
  const work = [...tree.roots].reverse();
  const kept = wanted ? matching(tree, wanted) : null;
  while (work.length) {
    const node = work.pop();
    if (kept && !kept.has(node)) continue;
    if (!kept || !node.fold) result.push(node);
    if (kept || node.open) for (let at = node.children.length - 1; at >= 0; at -= 1) work.push(node.children[at]);
  }
  return result;
}

function matching(tree, wanted) {
  const kept = new Map();
  tree.spans.forEach((span, index) => {
    if (!wanted(span, index)) return;
    for (let node = tree.nodeOf[index], first = true; node && !(kept.has(node) && !first); node = node.parent, first = false) {
      kept.set(node, kept.get(node) || first);
    }
  });
  return kept;
}

// Opens all that a span is part of, so that it has a row.
export function reveal(tree, index) {
  for (let node = tree.nodeOf[index].parent; node; node = node.parent) node.open = true;
}

export function isWait(span) {
  return span.name.startsWith("wait.");
}
