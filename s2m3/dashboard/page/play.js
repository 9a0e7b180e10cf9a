// The playground: choose a task, drop a picture, see the answer, its path and times, and the same request elsewhere.
import { byId, clear, h, seconds } from "./dom.js";
import { waterfall } from "./requests.js";
import { snippets } from "./snippets.js";
import { entries, isAnswers, name, of, onChange, post } from "./store.js";

const ACCEPT = { image: "image/jpeg,image/png,image/webp", audio: "audio/wav,audio/x-wav" };
let chosen = "", shape = "";
const files = {};

function showFile(input, file, zone) {
  files[input] = file;
  const picture = file.type.startsWith("image/") ? h("img", { alt: "" }) : null;
  if (picture) {
    picture.src = URL.createObjectURL(file);
    picture.onload = () => URL.revokeObjectURL(picture.src);
  }
  clear(zone.querySelector(".dropped"), picture, h("span", {}, file.name));
  showSnippets();
}

function fileField(input, kind) {
  const chooser = h("input", { type: "file", accept: ACCEPT[kind] ?? "", id: `in-${input}`, name: input });
  const zone = h("label", { class: "drop", for: `in-${input}` }, h("b", {}, input), h("span", { class: "dropped" }, kind === "image" ? "drop a picture here, or choose one" : "drop a sound (WAV) here, or choose one"), chooser);
  chooser.addEventListener("change", () => chooser.files[0] && showFile(input, chooser.files[0], zone));
  zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    if (event.dataTransfer.files[0]) showFile(input, event.dataTransfer.files[0], zone);
  });
  return zone;
}

function textField(input, optional) {
  return h("label", {}, h("b", {}, input), h("textarea", { rows: 3, name: input, placeholder: optional ? "may be left empty: the task has a default" : "one text a line" }));
}

function showForm() {
  const tasks = of("task").sort().map(name);
  if (!tasks.includes(chosen)) chosen = tasks[0] ?? "";
  const inputs = entries.get(`task/${chosen}`)?.inputs ?? {};
  const isAtCore = entries.has("bridge"), mayAsk = !Object.keys(entries.get("denied") ?? {}).some(isAnswers);
  const wanted = JSON.stringify([tasks, chosen, inputs, mayAsk, isAtCore]);
  if (wanted === shape) return;
  shape = wanted;
  for (const input of Object.keys(files)) delete files[input];
  if (isAtCore || !tasks.length) {
    clear(byId("ask"), h("p", { class: "none" }, isAtCore ? "A core carries no requests: ask with the site's own broker. Traces of requests stay in the site, too." : "No task is deployed. Try: s2m3 deploy pocket/classify"));
    clear(byId("snippets"));
    return;
  }
  const choose = h("select", { name: "task-name", onchange: (event) => { chosen = event.target.value; clear(byId("answer")); showForm(); } },
    tasks.map((task) => h("option", { value: task, selected: task === chosen }, task)));
  clear(byId("ask"), h("label", {}, h("b", {}, "task"), choose),
    Object.entries(inputs).map(([input, { kind, optional }]) => (kind === "text" ? textField(input, optional) : fileField(input, kind))),
    mayAsk ? h("button", { class: "go" }, "Ask") : h("p", { class: "none" }, "The account of this page may only look. The lines below work with one that may ask."));
  showSnippets();
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function ask(event) {
  event.preventDefault();
  const inputs = entries.get(`task/${chosen}`)?.inputs ?? {}, body = {};
  for (const [input, { kind, optional }] of Object.entries(inputs)) {
    if (kind === "text") {
      const lines = linesOf(byId("ask").elements.namedItem(input));
      if (lines) body[input] = lines.length === 1 ? lines[0] : lines;
    } else if (files[input]) body[input] = await read(files[input]);
    if (!(input in body) && !optional) return clear(byId("answer"), h("p", { class: "bad" }, `${input} is missing: ${kind === "text" ? "write a text" : "choose a file"}`));
  }
  const button = byId("ask").querySelector(".go");
  button.disabled = true;
  clear(byId("answer"), h("p", { class: "none" }, "asked, waiting …"));
  try {
    showAnswer(await post(`api/ask/${encodeURIComponent(chosen)}`, body));
  } catch (error) {
    clear(byId("answer"), h("p", { class: "bad" }, `no answer: ${error.message}`));
  }
  button.disabled = false;
}

function showAnswer(document) {
  if (document.error) return clear(byId("answer"), h("p", { class: "bad" }, h("b", {}, document.error.code), ` ${document.error.message}`));
  const answer = document.answer ?? {}, text = ["label", "text", "answer"].map((field) => answer[field]).find((value) => typeof value === "string");
  const nodes = Object.fromEntries(document.timings.map((each) => [each.node, { device: each.device, transfer_s: 0, queue_s: each.queue_s, compute_s: each.compute_s, return_s: 0, cache_hit: each.cached ?? false, bytes: 0, attempts: 1, batch: 1 }]));
  const task = entries.get(`task/${document.task}`);
  const needs = Object.fromEntries(Object.entries(task?.nodes ?? {}).map(([node, each]) => [node, each.needs.filter((need) => need in nodes)]));
  const ranked = Array.isArray(answer.ranked) ? answer.ranked.slice(0, 3).map((each) => `${each.label ?? each.answer ?? ""} ${Number(each.score).toFixed(2)}`).join(" · ") : "";
  clear(byId("answer"), h("p", { class: "said" }, text ?? (document.tensors ? `${Object.keys(document.tensors).length} arrays` : JSON.stringify(answer).slice(0, 300)), typeof answer.score === "number" ? h("small", {}, answer.score.toFixed(2)) : null),
    ranked ? h("small", {}, ranked) : null,
    h("p", {}, `${seconds(document.latency_s)} in all · ${document.timings.map((each) => `${each.node}@${each.device}`).join(" → ")}`),
    waterfall(nodes, needs, 0));
}

// The texts of an input, or its file's name; undefined while there are none.
function formValue(input) {
  const field = byId("ask").elements.namedItem(input);
  return field?.type === "file" ? files[input]?.name : field ? linesOf(field) : undefined;
}

function linesOf(field) {
  const lines = field.value.split("\n").map((line) => line.trim()).filter(Boolean);
  return lines.length ? lines : undefined;
}

function showSnippets() {
  const inputs = entries.get(`task/${chosen}`)?.inputs, about = entries.get("about");
  if (!inputs || !about || entries.has("bridge")) return clear(byId("snippets"));
  for (const [label, text] of Object.entries(snippets(about, chosen, inputs, formValue))) {
    const id = `lines-${label}`;
    if (!byId(id)) {
      const copy = async ({ target }) => {
        const copied = await navigator.clipboard?.writeText(byId(id).textContent).then(() => true, () => false);
        if (!copied) getSelection().selectAllChildren(byId(id));
        target.textContent = copied ? "copied" : "marked: copy it";
      };
      byId("snippets").append(h("details", {}, h("summary", {}, label), h("pre", { id, tabindex: 0 }), h("button", { type: "button", onclick: copy }, "copy")));
    }
    if (byId(id).textContent === text) continue;
    byId(id).textContent = text;
    byId(id).nextSibling.textContent = "copy";
  }
}

export function start() {
  byId("ask").addEventListener("submit", ask);
  byId("ask").addEventListener("input", showSnippets);
  onChange((changed) => { if ([...changed].some((key) => key.startsWith("task/") || key === "about" || key === "bridge" || key === "denied")) { showForm(); showSnippets(); } });
}
