// Starts the bands, the stream, and the choice between light and dark.
import { byId } from "./dom.js";
import { start as startMap } from "./map.js";
import { start as startPlay } from "./play.js";
import { start as startRequests } from "./requests.js";
import { follow } from "./store.js";
import { start as startTimeline } from "./timeline.js";
import { start as startVerdict } from "./verdict.js";

const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
function showTheme() {
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  byId("theme").textContent = isDark ? "light" : "dark";
}
function readTheme() {
  try { return localStorage.getItem("theme"); } catch { return null; }
}
if (readTheme()) root.dataset.theme = readTheme();
byId("theme").addEventListener("click", () => {
  root.dataset.theme = byId("theme").textContent;
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* the choice ends with the page */ }
  showTheme();
});
dark.addEventListener("change", showTheme);
showTheme();
for (const start of [startVerdict, startMap, startRequests, startTimeline, startPlay]) start();
follow();
