// The nodes that live: what they copy, at which rate, and how they reach the hub.

import { fill, make, write } from "./dom.js";
import { bytes } from "./units.js";

const LOOK_SECONDS = 2;

export class NodesView {
  title = "Nodes";
  #page;

  constructor(page) {
    this.#page = page;
    this.heading = make("h1", { tabIndex: -1 }, this.title);
    this.empty = make("p", { className: "empty", hidden: true },
      "No node is up. Start one at a site: ", make("code", {}, "sendense node --site NAME"));
    this.list = make("ul", { className: "nodes" });
    this.node = make("div", {}, make("div", { className: "title" }, this.heading), this.empty, this.list);
  }

  async look(signal) {
    const found = await this.#page.hub.get("nodes", signal);
    this.empty.hidden = found.length > 0;
    fill(this.list, found, (node) => node.name, nodePart);
    return LOOK_SECONDS;
  }
}

function nodePart() {
  const name = make("h2");
  const chip = make("span", { className: "chip" });
  const names = ["site", "rate", "batches under way", "processes", "round trip", "tunnel"];
  const values = names.map(() => make("dd"));
  const fields = names.flatMap((each, place) => [make("dt", {}, each), values[place]]);
  const detail = make("p", { className: "hint" });
  const node = make("li", {}, make("div", { className: "what" }, name, chip), make("dl", {}, ...fields), detail);
  const update = (found) => {
    write(name, found.name);
    const state = stateOf(found);
    write(chip, state);
    chip.className = `chip ${state === "up" ? "good" : "rest"}`;
    const shown = [
      found.host === found.name ? found.site : `${found.site}, ${found.host}`, `${bytes(found.rate)}/s`,
      found.active, found.processes, `${(found.round_trip * 1000).toFixed(1)} ms`, found.tunnel.verdict,
    ];
    values.forEach((value, place) => write(value, String(shown[place])));
    values.at(-1).className = found.tunnel.verdict === "ok" ? "" : "error";
    write(detail, found.tunnel.verdict === "ok" ? "" : found.tunnel.detail);
  };
  return { node, update };
}

/** In the words of `sendense nodes`. */
function stateOf(node) {
  if (node.drained) return node.active ? "draining" : "drained";
  return node.draining ? "draining" : "up";
}
