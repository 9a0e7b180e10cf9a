// The entries of the site, kept up to date by the stream of the server. Tells those who ask what changed, once a frame.

export const entries = new Map();
const changed = new Set();
const listeners = [];
let waiting = false;
export const stream = { open: false };

export const of = (kind) => [...entries.keys()].filter((key) => key.startsWith(`${kind}/`));
export const isAnswers = (topic) => topic.includes("/clients/"); // of the playground's own requests
export const name = (key) => key.slice(key.indexOf("/") + 1);
export const onChange = (listener) => listeners.push(listener);

// Elements that show an entry which never changes, unless the server was started again and counts from 1 again.
const shown = new WeakMap();
export const remember = (key, element) => shown.set(element, JSON.stringify(entries.get(key)));
export const isSame = (key, element) => shown.get(element) === JSON.stringify(entries.get(key));

export function touch(key) {
  changed.add(key);
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const now = new Set(changed);
    changed.clear();
    for (const listener of listeners) listener(now);
  });
}

function merge({ reset, entries: news }) {
  if (reset) {
    for (const key of entries.keys()) {
      if (!(key in news)) { entries.delete(key); touch(key); }
    }
  }
  for (const [key, value] of Object.entries(news)) {
    if (value === null) entries.delete(key);
    else entries.set(key, value);
    touch(key);
  }
}

// Ask this page's own server: a page of another site can't set the header.
export async function post(path, body) {
  const response = await fetch(path, { method: "POST", headers: { "X-S2M3": "ask", "Content-Type": "application/json" }, body: JSON.stringify(body) });
  return response.json();
}

export function follow() {
  const source = new EventSource("api/updates");
  source.onopen = () => { stream.open = true; touch("stream"); };
  source.onmessage = (message) => merge(JSON.parse(message.data));
  source.onerror = () => {
    stream.open = false;
    touch("stream");
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 2000);
  };
}
