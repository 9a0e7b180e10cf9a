// The first band: a site in some numbers, its notices, and whether this page is up to date.
import { ago, byId, bytes, clear, h, seconds } from "./dom.js";
import { entries, isAnswers, onChange, stream } from "./store.js";

function number(label, value, more, level = "") {
  return h("div", { class: level }, h("dt", {}, label), h("dd", {}, h("b", {}, value), more && h("span", {}, more)));
}

function share(label, [here, all]) {
  return number(label, `${here} of ${all}`, label === "devices" ? "here" : "served", here < all ? "bad" : all ? "good" : "");
}

function showNumbers() {
  const seen = entries.get("verdict");
  if (!seen) return;
  const saved = seen.unshared_bytes ? 1 - seen.shared_bytes / seen.unshared_bytes : 0;
  clear(byId("numbers"), [
    share("devices", seen.devices),
    share("tasks", seen.tasks),
    number("memory saved by sharing", `${Math.round(saved * 100)} %`, `${bytes(seen.shared_bytes)}, not ${bytes(seen.unshared_bytes)}`),
    number("failed requests", `${seen.failed}`, `of the last ${seen.requests}, ${seen.lost} lost`, seen.failed ? "bad" : seen.requests ? "good" : ""),
    number("p95", seen.p95_s === null ? "–" : seconds(seen.p95_s), "95 % were faster"),
    number("in the last minute", `${seen.minute}`, seen.minute_failed ? `${seen.minute_failed} failed` : "requests"),
    number("last failure of a device", seen.failure_at ? ago(seen.failure_at) : "none", seen.failure_at ? null : "while this ran"),
  ]);
}

function showNotices() {
  const seen = entries.get("verdict"), denied = entries.get("denied") ?? {};
  const told = [...(seen?.notices ?? [])];
  for (const [topic, why] of Object.entries(denied)) if (!isAnswers(topic)) told.push({ level: "look", text: `this account may not read ${topic} (${why}): what it says isn't shown` });
  if (seen?.more_notices) told.push({ level: "look", text: `and ${seen.more_notices} more` });
  if (!entries.size) told.length = 0;
  clear(byId("notices"), told.map(({ level, text }) => h("li", { class: level }, text)));
}

function showLink() {
  const link = entries.get("link"), about = entries.get("about");
  byId("about").textContent = about ? about.broker + (about.prefix === "s2m3/v1" ? "" : `, ${about.prefix}`) : "";
  const bridge = entries.get("bridge"); // only at a core
  const live = stream.open && link?.up && (bridge?.up ?? true);
  const text = !stream.open ? "no connection to `s2m3 dashboard`: trying again" : !link?.up ? `no broker: ${link?.why ?? ""}; trying again` : bridge && !bridge.up ? bridge.why : bridge ? "live, from the core" : "live";
  byId("link").textContent = text;
  byId("link").className = live ? "live" : "lost";
  document.body.classList.toggle("stale", !live);
}

export function start() {
  onChange((changed) => {
    if (changed.has("verdict") || changed.has("denied")) { showNumbers(); showNotices(); }
    if (changed.has("link") || changed.has("bridge") || changed.has("stream") || changed.has("about")) showLink();
  });
  setInterval(showNumbers, 1000);
}
