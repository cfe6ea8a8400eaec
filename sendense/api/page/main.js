// The page: who looks, at which view, and what is wrong between here and the hub.

import { problem } from "./dialogs.js";
import { write } from "./dom.js";
import { Hub } from "./hub.js";
import { JobView } from "./job.js";
import { JobsView } from "./jobs.js";
import { NodesView } from "./nodes.js";
import { PointsView } from "./points.js";
import { Poll } from "./poll.js";
import { SignIn } from "./signin.js";
import { zone } from "./units.js";

const TOKEN = "sendense-token";
const part = (id) => document.getElementById(id);

class Page {
  hub = null;
  #who = null;
  #view = null;
  #poll = null;

  get isOperator() {
    return this.#who?.role === "operator";
  }

  async begin() {
    addEventListener("hashchange", () => this.#route());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#view?.recolour?.());
    part("leave").addEventListener("click", () => this.#leave(null));
    part("skip").addEventListener("click", (event) => {
      event.preventDefault();
      part("main").focus();
    });
    write(part("zone"), `Times are those of this browser: ${zone()}.`);
    const token = sessionStorage.getItem(TOKEN);
    if (!token) {
      this.#leave(null);
      return;
    }
    const hub = this.#hubFor(token);
    // Until the hub says whose token it is, nothing else is worth asking.
    this.#poll = new Poll(async (signal) => {
      this.#enter(hub, await hub.get("whoami", signal));
      return null;
    }, (error, seconds) => this.tell(error, seconds));
  }

  /** Say once, also to who does not see the page, what was done. */
  say(text) {
    write(part("said"), text);
  }

  /** Show what is wrong, and when it is tried again; null: nothing is any more. */
  tell(error, seconds) {
    const notice = part("notice");
    if (!error || error.status === 401) {
      notice.replaceChildren();
      return;
    }
    const shown = problem(error);
    shown.removeAttribute("role"); // the notice has one
    if (seconds) shown.append(document.createTextNode(" It is tried again by itself."));
    if (notice.textContent !== shown.textContent) notice.replaceChildren(shown);
  }

  lookNow() {
    this.#poll?.now();
  }

  go(place) {
    location.hash = place;
  }

  #hubFor(token) {
    return new Hub(token, (why) => this.#leave(why));
  }

  #enter(hub, who) {
    this.hub = hub;
    this.#who = who;
    for (const id of ["views", "who", "leave"]) part(id).hidden = false;
    write(part("who"), `${who.name}, ${who.role}`);
    const flower = part("flower");
    flower.hidden = !who.flower;
    if (who.flower) flower.href = flowerUrl(who.flower);
    this.tell(null);
    this.#route(false);
  }

  /** Have a token asked for; `why`: what the hub said of the one before. */
  #leave(why) {
    sessionStorage.removeItem(TOKEN);
    this.#end();
    this.hub = this.#who = null;
    for (const id of ["views", "who", "leave"]) part(id).hidden = true;
    this.tell(null);
    this.#showView(new SignIn(why, (token, who) => {
      sessionStorage.setItem(TOKEN, token);
      this.#enter(this.#hubFor(token), who);
    }));
    this.#view.input.focus();
  }

  #route(moveFocus = true) {
    if (!this.hub) return;
    this.#end();
    const [, name = "", id = ""] = location.hash.split("/");
    const view =
      name === "jobs" && id ? new JobView(this, id)
      : name === "points" ? new PointsView(this)
      : name === "nodes" ? new NodesView(this)
      : new JobsView(this);
    this.#showView(view);
    for (const link of part("views").querySelectorAll("a[href^='#']")) {
      const isHere = link.getAttribute("href") === (name === "jobs" ? "#/" : `#/${name}`);
      if (isHere) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (moveFocus) view.heading.focus();
    this.#poll = new Poll(async (signal) => {
      const seconds = await view.look(signal);
      document.title = `${view.title} · Sendense`;
      return seconds;
    }, (error, seconds) => this.tell(error, seconds));
  }

  #showView(view) {
    this.#view = view;
    document.title = `${view.title} · Sendense`;
    part("main").replaceChildren(view.node);
    scrollTo(0, 0);
  }

  #end() {
    for (const dialog of document.querySelectorAll("dialog")) dialog.close();
    this.#poll?.stop();
    this.#poll = null;
    this.#view?.stop?.();
  }
}

/** Flower, also where the hub listens on all of its addresses: it is then at the one by which this page is reached. */
function flowerUrl(url) {
  const found = new URL(url);
  if (["0.0.0.0", "[::]"].includes(found.hostname)) found.hostname = location.hostname;
  return found.href;
}

new Page().begin();
