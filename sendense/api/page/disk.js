// One disk of a job: what is known of it, its map with the legend, and what a single batch is at.

import { fill, make, write } from "./dom.js";
import { Drawing, NODE_COLOURS } from "./drawing.js";
import { ALL, CopyMap, RUNNING, STATES } from "./map.js";
import { Bar } from "./progress.js";
import { bytes, count } from "./units.js";
import { nodeName } from "./words.js";

const HOW = "Point at a batch, or go to it with the arrow keys, to read what it is at.";

/** Keys that go from one batch to another on a map, and how far: in cells, or in rows. */
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Disk {
  #job;
  #place;
  #map = new CopyMap();
  #part = "copying";
  #isSeen = true;
  #isGone = false;
  #hasSucceeded = false;
  #selected = -1;
  #width = 0;
  #observers;

  /** `job`: its id; `place`: the disk's among its disks. */
  constructor(job, place) {
    this.#job = job;
    this.#place = place;
    const id = `disk-${place}`;
    this.title = make("h2", { id });
    this.facts = make("p", { className: "facts" });
    this.bar = new Bar("Progress of this disk");
    this.summary = make("p", { id: `${id}-summary`, className: "numbers" });
    this.canvas = make("canvas", {
      tabIndex: 0, role: "img", "aria-describedby": `${id}-summary ${id}-detail`,
    });
    this.ring = make("div", { className: "ring", hidden: true });
    this.plane = make("div", { className: "plane" }, this.canvas, this.ring);
    this.detail = make("p", { id: `${id}-detail`, className: "detail", "aria-live": "polite" }, HOW);
    this.states = make("ul", { className: "legend", "aria-label": "States" });
    this.nodes = make("ul", { className: "legend", "aria-label": "Nodes" });
    this.choice = this.#choice(id);
    this.body = make("div", { className: "map", hidden: true },
      make("div", { className: "legends" }, this.states, this.nodes, this.choice),
      this.plane, this.detail, this.summary);
    this.note = make("p", { className: "hint", hidden: true });
    this.node = make("section", { className: "disk", "aria-labelledby": id },
      this.title, this.facts, this.bar.node, this.note, this.body);
    this.drawing = new Drawing(this.canvas, this.#map);
    this.#listen();
  }

  /** Whether a look at its map is worth a request. */
  get isWanted() {
    return this.#isSeen && !this.#isGone;
  }

  /** Show what the job says of it. `verifying`: it is being read back now. */
  update(disk, { job, verifying }) {
    write(this.title, `Disk ${disk.key}, ${disk.label}`);
    this.canvas.setAttribute("aria-label", `Map of disk ${disk.key}`);
    const words = [bytes(disk.size)];
    if (disk.reason) words.push(`full, as ${disk.reason}`);
    else if (job.kind === "backup" || job.kind === "migrate") words.push(disk.mode);
    if (disk.parent) words.push(`built on ${disk.parent}`);
    if (disk.verified) words.push("verified");
    if (job.state === "succeeded" && disk.progress && !disk.progress.batches) words.push("nothing to copy");
    if (disk.differences.length) words.push(`${count(disk.differences.length, "difference")} found`);
    write(this.facts, words.join(" · "));
    const part = verifying && disk.verification ? "verification" : "copying";
    if (part !== this.#part) {
      this.#part = part;
      this.#isGone = false;
      this.#map.cursor = "";
    }
    const progress = part === "verification" ? disk.verification : disk.progress;
    this.bar.update(progress, { live: !job.ended, waiting: job.paused ? "paused" : "waiting" });
    this.#hasSucceeded = job.state === "succeeded";
    if (this.#hasSucceeded && this.#map.batches) this.#redraw(this.#map.complete());
  }

  /** Ask for what changed on its map, and draw that. */
  async look(hub, signal) {
    const after = this.#map.cursor ? `&after=${this.#map.cursor}` : "";
    let answer;
    try {
      const path = `jobs/${this.#job}/map?disk=${this.#place}&part=${this.#part}${after}`;
      answer = await hub.get(path, signal);
    } catch (error) {
      if (error.status !== 404) throw error;
      this.#isGone = true;
      if (this.#hasSucceeded && this.#map.batches) return;
      this.#redraw(this.#map.clear());
      this.#say("It has no map any more: that is kept until a job succeeds, or is cleaned.");
      return;
    }
    const changed = this.#map.take(answer);
    if (changed === ALL) await new Promise((resolve) => setTimeout(resolve)); // of a large disk each takes its while
    if (!signal.aborted) this.#redraw(changed);
  }

  /** The job was begun again: its map is there again. */
  revive() {
    this.#isGone = false;
    this.#say("");
  }

  stop() {
    this.drawing.stop();
    this.#observers.forEach((each) => each.disconnect());
  }

  /** The user's scheme changed. */
  recolour() {
    this.drawing.recolour();
  }

  #say(text) {
    this.note.hidden = !text;
    write(this.note, text);
  }

  #redraw(changed) {
    const map = this.#map;
    const wasHidden = this.body.hidden;
    this.body.hidden = !map.batches;
    if (!map.batches) return;
    if (changed === ALL || wasHidden) this.#lay();
    else if (changed.length) this.drawing.draw(changed);
    else return;
    this.#legend();
    if (changed === ALL || changed.includes(this.#selected)) this.#describe();
  }

  #lay() {
    this.#width = this.plane.clientWidth;
    this.drawing.lay(this.#width);
  }

  #legend() {
    const { counts, workers, byWorker } = this.#map;
    const byNode = this.drawing.colours === "node";
    const entry = ({ only, colour }) => {
      const text = make("span");
      const number = make("b");
      const button = make("button", { type: "button", "aria-pressed": "false" },
        make("span", { className: `swatch ${colour}`, "aria-hidden": "true" }), text, number);
      button.addEventListener("click", () => this.#show(only));
      const update = ({ name, amount }) => {
        write(text, name);
        write(number, amount.toLocaleString("en"));
        button.setAttribute("aria-pressed", String(isSame(this.drawing.only, only)));
      };
      return { node: make("li", {}, button), update };
    };
    const states = STATES.map(([name, colour], state) => ({ name, colour, amount: counts[state], only: { state } }));
    fill(this.states, states, (each) => each.colour, entry);
    const nodes = workers.map((worker, place) => ({
      name: nodeName(worker),
      colour: `node-${(place % NODE_COLOURS) + 1}`,
      amount: byWorker[place],
      only: { worker: place + 1 },
    }));
    fill(this.nodes, nodes, (each) => each.only.worker, entry);
    this.nodes.classList.toggle("plain", !byNode);
    const said = STATES.map(([name], state) => [counts[state], name]).filter(([amount]) => amount);
    const parts = said.map(([amount, name]) => `${amount.toLocaleString("en")} ${name}`);
    write(this.summary, `${count(this.#map.batches, "batch", "batches")}: ${parts.join(", ")}.`);
  }

  /** Show one state or one node in full and the others faintly; once more for all. */
  #show(only) {
    this.drawing.only = isSame(this.drawing.only, only) ? null : only;
    this.drawing.draw(ALL);
    this.#legend();
  }

  #choice(id) {
    const radio = (value, text) => {
      const input = make("input", { type: "radio", name: `${id}-colours`, value, checked: value === "state" });
      input.addEventListener("change", () => {
        this.drawing.colours = value;
        this.drawing.draw(ALL);
        this.#legend();
      });
      return make("label", {}, input, text);
    };
    return make("div", { className: "choice", role: "radiogroup", "aria-label": "Colours" },
      make("span", { "aria-hidden": "true" }, "Colours"), radio("state", "by state"), radio("node", "by node"));
  }

  #listen() {
    const { canvas } = this;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return this.drawing.batchAt(event.clientX - box.left, event.clientY - box.top);
    };
    canvas.addEventListener("pointermove", (event) => this.#select(at(event)));
    canvas.addEventListener("pointerleave", () => this.#select(-1));
    canvas.addEventListener("blur", () => this.#select(-1));
    canvas.addEventListener("keydown", (event) => {
      const [cells, rows] = STEPS[event.key] ?? [0, 0];
      const last = this.#map.batches - 1;
      let to = this.#selected < 0 ? 0 : this.#selected + cells + rows * this.drawing.columns;
      if (event.key === "Home") to = 0;
      else if (event.key === "End") to = last;
      else if (!cells && !rows) return;
      event.preventDefault();
      this.#select(Math.max(0, Math.min(last, to)));
    });
    const seen = new IntersectionObserver((entries) => {
      this.#isSeen = entries.at(-1).isIntersecting;
    }, { rootMargin: "200px" });
    seen.observe(this.node);
    const sized = new ResizeObserver(() => {
      const { clientWidth } = this.plane;
      if (!clientWidth || clientWidth === this.#width || !this.#map.batches) return;
      this.#lay();
      this.#select(this.#selected);
    });
    sized.observe(this.plane);
    this.#observers = [seen, sized];
  }

  #select(batch) {
    this.#selected = batch;
    this.ring.hidden = batch < 0;
    if (batch >= 0) {
      const [x, y] = this.drawing.place(batch);
      const { side } = this.drawing;
      Object.assign(this.ring.style, {
        transform: `translate(${x}px, ${y}px)`, width: `${side}px`, height: `${side}px`,
      });
    }
    this.#describe();
  }

  #describe() {
    const { states, owners, workers, moved } = this.#map;
    const batch = this.#selected;
    if (batch < 0) {
      write(this.detail, HOW);
      return;
    }
    const words = [`Batch ${(batch + 1).toLocaleString("en")}: ${STATES[states[batch]][0]}`];
    if (owners[batch]) words.push(`by ${nodeName(workers[owners[batch] - 1])}`);
    if (states[batch] === RUNNING) words.push(`${bytes(moved.get(batch) ?? 0)} so far`);
    write(this.detail, words.join(", "));
  }
}

function isSame(one, other) {
  return Boolean(one && other) && one.state === other.state && one.worker === other.worker;
}
