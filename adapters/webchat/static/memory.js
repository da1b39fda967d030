// What the browser remembers between visits. Where storage is blocked it lasts as long as the page.

const instance = document.documentElement.dataset.instance;
const fallback = new Map();

// The theme is shared by all instances of a site: theme.js reads it before this module is loaded.
const key = (name) => (name === "theme" ? "magpie.theme" : `magpie.${instance}.${name}`);

export function recall(name) {
  try {
    return localStorage.getItem(key(name));
  } catch {
    return fallback.get(name) ?? null;
  }
}

// A value of null or "" is forgotten.
export function remember(name, value) {
  try {
    if (value) localStorage.setItem(key(name), value);
    else localStorage.removeItem(key(name));
  } catch {
    fallback.set(name, value);
  }
}
