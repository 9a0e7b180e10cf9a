// The second band: devices as lanes, modules as blocks coloured by their content, and the path of a chosen task.
import { byId, bytes, clear, clock, h, hue, keep, seconds } from "./dom.js";
import { entries, name, of, onChange, post, touch } from "./store.js";

const lanes = new Map(), chips = new Map();
const MANY = 50; // beyond it, rows that aren't in sight aren't laid out
let chosen = null;

let users = new Map(); // the key of a module -> the tasks that use it

function findUsers() {
  users = new Map();
  for (const task of of("task").sort()) {
    for (const key of new Set(Object.values(entries.get(task).nodes).map((node) => node.key))) users.set(key, [...(users.get(key) ?? []), name(task)]);
  }
}

function block(module) {
  const used = users.get(module.key) ?? [];
  const state = module.state === "ready" ? (module.role === "standby" ? "standby" : "") : module.state;
  const made = h("div", { class: `block ${module.state} ${module.role}`, "data-key": module.key, title: [module.key, module.why, module.error].filter(Boolean).join("\n") },
    h("b", {}, module.name), h("span", {}, [bytes(module.bytes), state, module.busy ? `${module.busy} run` : "", module.waiting ? `${module.waiting} wait` : ""].filter(Boolean).join(" · ")),
    h("span", { class: "users" }, used.length > 1 ? h("i", {}, `shared by ${used.length}`) : null, used.slice(0, 4).join(", ") + (used.length > 4 ? ", …" : "")));
  made.style.setProperty("--hue", hue(module.key));
  return made;
}

// A lane and a chip are made once and filled again, so that a button keeps the focus, and a press that has begun.
function lane(key, old) {
  const device = entries.get(key), full = device.budget ? device.used / device.budget : 0;
  const made = old ?? h("article", { "data-device": name(key) }, h("div", { class: "device" }, h("div", {}), order(key)), h("div", { class: "blocks" }));
  const bar = h("i");
  bar.style.width = `${Math.min(100, full * 100)}%`;
  const when = device.standing === "online" ? "" : device.until ? ` until ${clock(device.until)}` : device.since && device.standing !== "offline" ? ` since ${clock(device.since)}` : "";
  made.className = `lane ${device.here ? "here" : "gone"} ${device.standing}`;
  made.title = [device.why, device.cpu, device.host].filter(Boolean).join("\n");
  clear(made.querySelector(".device > div"),
    h("h3", {}, name(key), h("span", { class: "standing" }, (device.standing === "probation" ? "on probation" : device.standing) + when)),
    h("div", { class: full > 0.95 ? "memory full" : "memory", role: "img", "aria-label": `${bytes(device.used)} of ${bytes(device.budget)} of memory used` }, bar),
    h("small", {}, device.here ? `${bytes(device.used)} of ${bytes(device.budget)}` : "its memory is lost", device.here && device.in_flight ? ` · ${device.in_flight} in flight` : "", device.version ? ` · ${device.version}` : ""));
  clear(made.querySelector(".blocks"), device.modules.length ? device.modules.map(block) : h("em", {}, "no modules"));
  const button = made.querySelector(".order");
  if (button) {
    button.textContent = device.drain ? "undrain" : "drain";
    button.setAttribute("aria-label", `${button.textContent} ${name(key)}`);
    button.hidden = !device.here && !device.drain;
  }
  return made;
}

// The button that drains a device or puts it back, where the page may: with `--allow-control`.
function order(key) {
  if (!entries.get("about")?.control) return null;
  return h("button", { type: "button", class: "order", onclick: async () => {
    const device = name(key), drain = !entries.get(key).drain;
    byId("order-text").textContent = `${drain ? "draining" : "undraining"} ${device} …`;
    byId("order-text").textContent = await post(`api/drain/${encodeURIComponent(device)}`, { drain }).then(
      ({ error }) => error ? error.message : drain ? `${device} is to be drained: its modules move first, requests go on` : `${device} is to be in service again`,
      (error) => `no answer: ${error.message}`);
  } });
}

function chip(key, old) {
  const task = entries.get(key), isOn = chosen === key;
  const made = old ?? h("button", { type: "button", onclick: () => { chosen = chosen === key ? null : key; for (const each of of("task")) touch(each); } });
  made.className = `chip ${task.state}`;
  made.title = task.why || task.revision || "";
  made.setAttribute("aria-pressed", String(isOn));
  clear(made, name(key), task.state === "served" ? "" : h("small", {}, task.state), task.candidate?.state === "loading" ? h("small", {}, "new revision loads") : "");
  return made;
}

// The device of each node: as in the task's newest trace, if the routes still allow it.
function places(key) {
  const task = entries.get(key);
  const traces = of("request").sort().reverse().map((each) => entries.get(each));
  const trace = traces.find((each) => each.task === name(key) && each.outcome === "answered");
  const at = {};
  for (const [node, { devices }] of Object.entries(task.nodes)) {
    const traced = trace?.nodes[node]?.device;
    at[node] = devices.includes(traced) ? traced : devices[0];
  }
  return { task, trace, at };
}

const find = (device, key) => {
  const element = device && lanes.get(`device/${device}`);
  return element && [...element.querySelectorAll(".block")].find((each) => each.dataset.key === key);
};

function svg(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

function edge(from, to, label, frame) {
  const a = from.getBoundingClientRect(), b = to.getBoundingClientRect();
  const one = { x: a.left + a.width / 2 - frame.left, y: a.top + a.height / 2 - frame.top };
  const other = { x: b.left + b.width / 2 - frame.left, y: b.top + b.height / 2 - frame.top };
  const isDown = other.y > one.y + 5, isUp = other.y < one.y - 5;
  one.y += isDown ? a.height / 2 : isUp ? -a.height / 2 : a.height / 2;
  other.y += isDown ? -b.height / 2 : b.height / 2;
  const bend = isDown || isUp ? (other.y - one.y) / 2 : 24;
  const curve = isDown || isUp ? `M${one.x} ${one.y} C${one.x} ${one.y + bend} ${other.x} ${other.y - bend} ${other.x} ${other.y}`
    : `M${one.x} ${one.y} C${one.x} ${one.y + bend} ${other.x} ${other.y + bend} ${other.x} ${other.y}`;
  const middle = { x: (one.x + other.x) / 2, y: isDown || isUp ? (one.y + other.y) / 2 : one.y + 16 };
  return [svg("path", { d: curve, "marker-end": "url(#arrow)" }), ...(label ? [svg("text", { x: middle.x, y: middle.y, "text-anchor": "middle" }, label)] : [])];
}

function drawPath() {
  const paths = byId("paths"), text = byId("path-text");
  document.querySelectorAll(".block.on").forEach((each) => each.classList.remove("on"));
  byId("lanes").classList.toggle("choosing", Boolean(chosen));
  if (!chosen || !entries.has(chosen)) { chosen = null; paths.replaceChildren(); text.textContent = ""; byId("lanes").classList.remove("choosing"); return; }
  const { task, trace, at } = places(chosen);
  const frame = byId("lanes").getBoundingClientRect();
  paths.setAttribute("width", byId("lanes").scrollWidth);
  paths.setAttribute("height", byId("lanes").scrollHeight);
  const arrow = svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 5, markerHeight: 5, orient: "auto" });
  arrow.append(svg("path", { d: "M0 0L8 4L0 8z" }));
  const drawn = [arrow], told = [];
  for (const node of task.order) {
    const to = find(at[node], task.nodes[node].key), spent = trace?.nodes[node];
    const cost = spent && spent.device === at[node] ? `${seconds(spent.transfer_s + spent.return_s)}, ${bytes(spent.bytes)}` : "";
    told.push(`${node} on ${at[node] ?? "no device yet"}${spent ? ` (${spent.cache_hit ? "cached" : seconds(spent.compute_s)})` : ""}`);
    to?.classList.add("on");
    for (const need of task.nodes[node].needs) {
      const from = task.nodes[need] && find(at[need], task.nodes[need].key);
      if (from && to && from !== to) drawn.push(...edge(from, to, at[need] === at[node] ? "" : cost, { left: frame.left - byId("lanes").scrollLeft, top: frame.top - byId("lanes").scrollTop }));
    }
  }
  paths.replaceChildren(...drawn);
  text.textContent = `${name(chosen)}: ${told.join(" → ")}. ${trace ? `Its last request took ${seconds(trace.total_s)}.` : "No request was seen yet."} Front door: ${task.front_door.join(", ") || "none"}.`;
}

export function start() {
  onChange((changed) => {
    const tasks = [...changed].some((key) => key.startsWith("task/"));
    const devices = [...changed].some((key) => key.startsWith("device/"));
    if (tasks) {
      findUsers();
      keep(byId("tasks"), null, chips, changed, of("task").sort(), chip);
      for (const key of of("device")) changed.add(key);
    }
    if (tasks || devices) {
      keep(byId("lanes"), byId("paths"), lanes, changed, of("device").sort(), lane);
      byId("lanes").classList.toggle("empty", !lanes.size);
      byId("lanes").classList.toggle("many", lanes.size > MANY);
    }
    if (chosen && (tasks || devices || [...changed].some((key) => key.startsWith("request/")))) drawPath();
    else if (tasks) drawPath();
  });
  new ResizeObserver(() => drawPath()).observe(byId("lanes"));
  clear(byId("path-text"));
}
