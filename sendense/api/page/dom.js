// Elements, made and changed without ever reading text as HTML: a VM's name may have anything in it.

/** An element with these properties (or attributes, where it has no such property) and children; strings are text. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Change an element's text, where it is another: what did not change is neither drawn nor read out again. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const kept = new WeakMap();

/**
 * Have a part in `parent` for each item, in order. `create` makes that of a new item: {node, update}; those that stay are
 * the same elements as before, so that the focus stays where it is.
 */
export function fill(parent, items, key, create) {
  const before = kept.get(parent) ?? new Map();
  const now = new Map();
  for (const item of items) {
    const id = key(item);
    const part = before.get(id) ?? create(item);
    part.update(item);
    now.set(id, part);
  }
  for (const [id, part] of before) {
    if (!now.has(id)) part.node.remove();
  }
  let place = parent.firstChild;
  for (const part of now.values()) {
    if (part.node === place) place = place.nextSibling;
    else parent.insertBefore(part.node, place);
  }
  kept.set(parent, now);
}
