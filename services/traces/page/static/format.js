// Numbers and words as people read them. All are pure.

// Seconds, with three digits or so: 412 µs, 4.1 ms, 41 ms, 0.41 s, 9.90 s, 1 min 23 s.
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "?";
  if (seconds < 0) return `−${duration(-seconds)}`;
  if (seconds === 0) return "0";
  if (seconds < 0.0009995) return `${Math.max(1, Math.round(seconds * 1e6))} µs`;
  if (seconds < 0.00995) return `${(seconds * 1e3).toFixed(1)} ms`;
  if (seconds < 0.09995) return `${(seconds * 1e3).toFixed(0)} ms`;
  if (seconds < 9.995) return `${seconds.toFixed(2)} s`;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(count) {
  let unit = 0;
  while (Math.abs(count) >= 1000 && unit < UNITS.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${unit === 0 || Math.abs(count) >= 99.95 ? count.toFixed(0) : count.toFixed(1)} ${UNITS[unit]}`;
}

export function percent(share) {
  return share > 0 && share < 0.005 ? "<1 %" : `${Math.round(share * 100)} %`;
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

// A moment (milliseconds since the epoch) in the browser's own time: 20:14:03 of today, else with the date.
export function moment(milliseconds, now = Date.now()) {
  const date = new Date(milliseconds);
  if (!Number.isFinite(date.getTime())) return "?";
  const two = (number) => String(number).padStart(2, "0");
  const time = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  if (date.toDateString() === new Date(now).toDateString()) return time;
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${time}`;
}

export function ago(milliseconds, now = Date.now()) {
  const seconds = (now - milliseconds) / 1e3;
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

// The name of a process without the project's: "images" for splitd-images.
export function process(service) {
  return service.replace(/^splitd-/, "") || "unknown";
}

export const KNOWN = ["gateway", "metadata", "content", "snapshots", "images", "tasks"];

// A colour for each process: its own for those of a node, the others in turn.
export function colours(services) {
  const others = services.map(process).filter((each) => !KNOWN.includes(each)).sort();
  return (service) => {
    const name = process(service);
    return KNOWN.includes(name) ? name : `other${others.indexOf(name) % 2}`;
  };
}

// The name of a span in a line: a call is Service.Method, without the package.
export function spanName(name) {
  const call = /^\/?(?:[\w.]*\.)?(\w+)\/(\w+)$/.exec(name);
  return call ? `${call[1]}.${call[2]}` : name;
}

// The reference of an image, parted where eyes look: what is before the last part of its name, and the rest.
export function imageParts(image) {
  const cut = image.lastIndexOf("/");
  return [image.slice(0, cut + 1), image.slice(cut + 1)];
}

// What a span is about, in few words, by the attributes that docs/tracing.md lists.
export function about(attributes = {}) {
  const told = [];
  const wait = attributes["splitd.wait.for"];
  if (wait) return String(wait);
  if (attributes["splitd.layer"] !== undefined) told.push(layer(attributes["splitd.layer"]));
  if (attributes["server.address"]) {
    const port = attributes["server.port"];
    told.push(`${attributes["server.address"]}${port && !String(attributes["server.address"]).endsWith(`:${port}`) ? `:${port}` : ""}`);
  }
  if (attributes["http.response.status_code"] >= 400) told.push(String(attributes["http.response.status_code"]));
  if (attributes["splitd.bytes"] > 0) told.push(bytes(attributes["splitd.bytes"]));
  else if (attributes["splitd.size"] > 0) told.push(bytes(attributes["splitd.size"]));
  if (attributes["splitd.pause.reason"]) told.push(String(attributes["splitd.pause.reason"]));
  if (!told.length && attributes["oci.layer.digest"]) told.push(digest(String(attributes["oci.layer.digest"])));
  return told.join(" · ");
}

// A layer by its number, which spans count from 0, and people and verdicts from 1.
export function layer(number) {
  return `layer ${Number(number) + 1}`;
}

export function digest(text) {
  const found = /^sha256:([0-9a-f]{12})[0-9a-f]{52}$/.exec(text);
  return found ? found[1] : text;
}
