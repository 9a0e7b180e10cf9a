// Elements, numbers and times as text. Everything from the site is set as text, never as markup.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

export const byId = (id) => document.getElementById(id);
export const clear = (element, ...children) => element.replaceChildren(...children.flat().filter(Boolean));

// Keep one child per key, in the order of the keys; make and replace only those that changed.
export function keep(parent, before, kept, changed, keys, make) {
  const wanted = new Set(keys);
  for (const [key, element] of kept) {
    if (!wanted.has(key)) { element.remove(); kept.delete(key); }
  }
  let place = before;
  for (const key of keys) {
    let element = kept.get(key);
    if (!element || changed.has(key)) {
      const made = make(key, element);
      if (element && element !== made) element.replaceWith(made);
      kept.set(key, made);
      element = made;
    }
    const next = place ? place.nextSibling : parent.firstChild;
    if (next !== element) parent.insertBefore(element, next);
    place = element;
  }
}

export function bytes(count) {
  if (count >= 1 << 30) return `${(count / (1 << 30)).toFixed(1)} GiB`;
  if (count >= 1 << 20) return `${(count / (1 << 20)).toFixed(count < 10 << 20 ? 1 : 0)} MiB`;
  return count >= 1024 ? `${Math.round(count / 1024)} KiB` : `${count} B`;
}

export function seconds(time) {
  if (time < 0.001) return `${(time * 1000).toFixed(2)} ms`;
  if (time < 1) return `${(time * 1000).toFixed(time < 0.01 ? 1 : 0)} ms`;
  return `${time.toFixed(time < 10 ? 2 : 0)} s`;
}

export function clock(at, digits = 0) {
  const time = new Date(at * 1000);
  const fraction = digits ? `.${String(Math.floor(time.getMilliseconds())).padStart(3, "0").slice(0, digits)}` : "";
  return time.toLocaleTimeString("en-GB") + fraction;
}

export function ago(at) {
  const age = Math.max(0, Date.now() / 1000 - at);
  if (age < 60) return `${Math.floor(age)} s ago`;
  if (age < 3600) return `${Math.floor(age / 60)} min ago`;
  return age < 86400 ? `${Math.floor(age / 3600)} h ago` : `${Math.floor(age / 86400)} days ago`;
}

// A colour for a module's weights: the same key has the same one. Neighbouring hues are avoided while others are free.
const HUES = [205, 28, 150, 280, 55, 330, 180, 0, 100, 240, 305, 75];
const hues = new Map();
export function hue(key) {
  if (!hues.has(key)) {
    let place = 0;
    for (const letter of key) place = (place * 31 + letter.codePointAt(0)) >>> 0;
    const used = new Set(hues.values());
    const free = HUES.filter((each) => !used.has(each));
    hues.set(key, (free.length ? free : HUES)[place % (free.length || HUES.length)]);
  }
  return hues.get(key);
}
