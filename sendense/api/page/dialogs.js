// Questions that must be answered before anything else; the browser keeps the focus in them, and Escape leaves them.

import { make } from "./dom.js";

let number = 0;

/** A dialog with a heading, shown at once; `closed` is called when it is gone, and the focus is back where it was. */
export function open(heading, closed, ...children) {
  const before = document.activeElement;
  number += 1;
  const id = `dialog-${number}`;
  const dialog = make("dialog", { "aria-labelledby": id }, make("h2", { id }, heading), ...children);
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (before?.isConnected) before.focus();
    closed(dialog.returnValue);
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Whether the user says yes; no is what the dialog offers first. */
export function ask(heading, text, yes, no) {
  return new Promise((resolve) => {
    const decline = make("button", { type: "button", className: "strong", autofocus: true }, no);
    const accept = make("button", { type: "button" }, yes);
    const dialog = open(heading, (answer) => resolve(answer === "yes"),
      make("p", {}, text), make("div", { className: "actions" }, decline, accept));
    decline.addEventListener("click", () => dialog.close("no"));
    accept.addEventListener("click", () => dialog.close("yes"));
  });
}

/** A problem in words: what, and what to do about it. */
export function problem(error) {
  const known = error.hint !== undefined;
  const text = known ? error.message : `This page met a fault of its own: ${error.message}.`;
  const hint = known ? error.hint : "Reload it; if that does not help, report it.";
  return make("div", { className: "problem", role: "alert" },
    make("p", {}, text), hint ? make("p", { className: "hint" }, hint) : null);
}
