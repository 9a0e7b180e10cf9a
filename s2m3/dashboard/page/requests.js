// The third band: the last requests; each opens to its waterfall.
import { byId, bytes, clock, h, keep, seconds } from "./dom.js";
import { entries, isSame, name, of, onChange, remember } from "./store.js";

const kept = new Map(), PARTS = ["transfer", "queue", "compute", "return"];

// When each node began: after the last of what it needs. Traces have durations only, so that no two clocks are compared.
function begins(nodes, needs) {
  const ends = {}, starts = {}, left = new Set(Object.keys(nodes));
  const took = (node) => PARTS.reduce((sum, part) => sum + nodes[node][`${part}_s`], 0);
  while (left.size) {
    const ready = [...left].filter((node) => (needs[node] ?? []).every((need) => !left.has(need)));
    for (const node of ready.length ? ready : [...left]) {
      starts[node] = Math.max(0, ...(needs[node] ?? []).map((need) => ends[need] ?? 0));
      ends[node] = starts[node] + took(node);
      left.delete(node);
    }
  }
  return starts;
}

export function waterfall(nodes, needs, total) {
  const starts = begins(nodes, needs);
  const whole = Math.max(total, ...Object.keys(nodes).map((node) => starts[node] + PARTS.reduce((sum, part) => sum + nodes[node][`${part}_s`], 0)), 1e-6);
  const rows = Object.keys(nodes).sort((one, other) => starts[one] - starts[other]).map((node) => {
    const spent = nodes[node];
    let at = starts[node];
    const bars = PARTS.map((part) => {
      const bar = h("i", { class: part + (spent.cache_hit && part === "compute" ? " cached" : "") });
      bar.style.left = `${(at / whole) * 100}%`;
      bar.style.width = `${(spent[`${part}_s`] / whole) * 100}%`;
      at += spent[`${part}_s`];
      return bar;
    });
    const words = [...PARTS.filter((part) => spent[`${part}_s`] >= 0.00005).map((part) => `${part} ${seconds(spent[`${part}_s`])}`), spent.cache_hit ? "cached" : "",
      spent.bytes ? `${bytes(spent.bytes)} in` : "", spent.attempts > 1 ? `${spent.attempts} attempts` : "", spent.batch > 1 ? `${spent.batch} in its pass` : ""].filter(Boolean).join(", ");
    return h("div", { class: "node" }, h("b", {}, node), h("span", {}, spent.device), h("div", { class: "bars", role: "img", "aria-label": words }, bars), h("small", {}, words));
  });
  return h("div", { class: "waterfall" }, rows);
}

function row(key, old) {
  if (old && isSame(key, old)) return old;
  const trace = entries.get(key), fine = trace.outcome === "answered";
  const devices = [...new Set(Object.values(trace.nodes).map((node) => node.device))].join(" → ");
  const bar = h("i");
  bar.style.width = `${Math.min(100, trace.total_s * 100)}%`;
  const made = h("details", { class: fine ? "request" : "request failed" },
    h("summary", {}, h("time", {}, clock(trace.at)), h("b", {}, trace.task), h("span", { class: "outcome" }, fine ? "answered" : trace.outcome),
      h("span", { class: "took" }, seconds(trace.total_s)), h("span", { class: "way" }, devices || `no node finished on ${[...new Set(Object.values(trace.unfinished))].join(", ")}`)));
  remember(key, made);
  made.addEventListener("toggle", () => {
    if (!made.open || made.querySelector(".waterfall")) return;
    const task = entries.get(`task/${trace.task}`);
    const needs = Object.fromEntries(Object.entries(task?.nodes ?? {}).map(([node, each]) => [node, each.needs.filter((need) => need in trace.nodes)]));
    made.append(waterfall(trace.nodes, needs, trace.total_s));
    const open = Object.entries(trace.unfinished).map(([node, device]) => `${node} on ${device}`).join(", ");
    made.append(h("p", {}, `request ${trace.request}, coordinated by ${trace.coordinator}${trace.traceparent ? `, traceparent ${trace.traceparent}` : ""}${open ? `; not finished: ${open}` : ""}`));
  });
  return made;
}

export function start() {
  const none = h("p", { class: "none" }, "No request yet. Ask one beside the map, or with s2m3 request.");
  byId("request-list").append(none);
  onChange((changed) => {
    if (![...changed].some((key) => key.startsWith("request/"))) return;
    const keys = of("request").sort().reverse();
    none.hidden = keys.length > 0;
    keep(byId("request-list"), none, kept, changed, keys, row);
  });
}
export const latest = () => name(of("request").sort().pop() ?? "request/");
