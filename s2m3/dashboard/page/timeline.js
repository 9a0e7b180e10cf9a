// The fourth band: failures, each as one bracket, and events with their reasons.
import { byId, clock, h, keep, seconds } from "./dom.js";
import { entries, isSame, of, onChange, remember } from "./store.js";

const events = new Map(), failures = new Map();
const BAD = new Set(["device_dead", "device_suspect", "module_failed", "task_unavailable", "revision_refused"]);
const GOOD = new Set(["device_online", "module_ready", "took_over", "revision_served"]);

function event(key, old) {
  if (old && isSame(key, old)) return old;
  const { at, type, device, task, module, origin, why } = entries.get(key);
  const what = [module, task && !module ? task : ""].filter(Boolean).join(" ");
  const where = origin && device ? `${origin} → ${device}` : device ?? "";
  const made = h("li", { class: BAD.has(type) ? "bad" : GOOD.has(type) ? "good" : "" }, h("time", {}, clock(at)), h("b", {}, type.replaceAll("_", " ")),
    h("span", { class: "what" }, [what, where].filter(Boolean).join(" · ")), why ? h("small", {}, why) : null);
  remember(key, made);
  return made;
}

function failure(key) {
  const { device, why, at, takeover_at: taken, modules, answer_at: answered, answer } = entries.get(key);
  const step = (label, time, more) => h("li", { class: time ? "done" : "open" }, h("b", {}, label), h("span", {}, time ? (time === at ? clock(at, 1) : `+${seconds(time - at)}`) : "–"), more ? h("small", {}, more) : null);
  return h("article", { class: "failure" }, h("h3", {}, `${device} failed`, h("small", {}, why)),
    h("ol", {}, step("signal", at, ""), step("takeover", taken, modules.map((each) => `${each.module} to ${each.to}`).join("; ")),
      step("first answer", answered, answer ? `to ${answer}` : "")));
}

export function start() {
  const none = h("li", { class: "none" }, "Nothing happened since this page's process started.");
  byId("event-list").append(none);
  onChange((changed) => {
    const has = (kind) => [...changed].some((key) => key.startsWith(kind));
    if (has("event/")) {
      const keys = of("event").sort().reverse();
      none.hidden = keys.length > 0;
      keep(byId("event-list"), none, events, changed, keys, event);
    }
    if (has("failure/")) keep(byId("failure-list"), null, failures, changed, of("failure").sort().reverse().slice(0, 3), failure);
  });
}
