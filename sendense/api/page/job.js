// One job: what it is at, its disks with their maps, and its history; pause, resume and cancel for operators.

import { Disk } from "./disk.js";
import { ask, problem } from "./dialogs.js";
import { fill, make, write } from "./dom.js";
import { pace } from "./poll.js";
import { Bar } from "./progress.js";
import { moment } from "./units.js";
import { Chip, began, took } from "./words.js";

/** Between two looks at a job that has ended: somebody may resume it. */
const ENDED_SECONDS = 5;

const CANCELLING = "What it made is cleaned up. Batches that are stored stay, and are not copied again when the job is resumed; those under way are, up to 128 MiB for each process.";

/** Lines of the history that are shown; all of it: `sendense jobs events`. */
const MOST_EVENTS = 300;

export class JobView {
  #page;
  #id;
  #disks = [];
  #events = [];
  #state = "";
  #isAsking = false;
  #acts = 0;

  constructor(page, id) {
    this.#page = page;
    this.#id = encodeURIComponent(id); // whatever somebody wrote into the address
    this.heading = make("h1", { tabIndex: -1 }, `Job ${id}`);
    this.chip = new Chip();
    this.facts = make("p", { className: "facts" });
    this.trouble = make("div", { className: "trouble", hidden: true });
    this.pause = this.#button("Pause", () => this.#act("pause", "is to be paused"));
    this.resume = this.#button("Resume", () => this.#act("resume", "goes on"));
    this.cancel = this.#button("Cancel", () => this.#cancel());
    this.actions = make("div", { className: "actions", role: "group", "aria-label": "Job" },
      this.pause, this.resume, this.cancel);
    this.refusal = make("div");
    this.bar = new Bar("Progress of the job");
    this.disks = make("div", { className: "disks" });
    this.history = make("ol", { className: "events" });
    this.body = make("div", { hidden: true },
      this.facts, this.trouble, this.actions, this.refusal, this.bar.node, this.disks,
      make("h2", {}, "History"), make("p", { className: "hint" }, "The latest first."), this.history);
    this.node = make("div", { className: "job" },
      make("p", { className: "back" }, make("a", { href: "#/" }, "All jobs")),
      make("div", { className: "title" }, this.heading, this.chip.node), this.body);
  }

  get title() {
    return this.heading.textContent;
  }

  async look(signal) {
    const { hub } = this.#page;
    const acts = this.#acts;
    const job = await hub.get(`jobs/${this.#id}`, signal);
    if (acts === this.#acts) this.#show(job); // otherwise it is from before what was done meanwhile
    let requests = 1;
    for (const disk of this.#disks.filter((each) => each.isWanted)) {
      await disk.look(hub, signal);
      requests += 1;
    }
    await this.#follow(signal);
    return job.ended ? ENDED_SECONDS : pace(requests + 1);
  }

  recolour() {
    this.#disks.forEach((disk) => disk.recolour());
  }

  stop() {
    this.#disks.forEach((disk) => disk.stop());
  }

  #show(job) {
    if (this.#state && job.ended && this.#state !== job.state) this.#page.say(`${job.name}: ${job.state}`);
    if (this.#state !== job.state && !job.ended) this.#disks.forEach((disk) => disk.revive());
    this.#state = job.state;
    this.body.hidden = false;
    write(this.heading, job.name);
    this.chip.update(job);
    const words = [`job ${job.id}`, `submitted ${moment(job.created)}`, began(job)].filter(Boolean);
    const time = took(job, this.#page.hub.now());
    if (time) words.push(`${job.ended ? "took" : "for"} ${time}`);
    if (job.point) words.push(`restore point ${job.point}`);
    if (job.waiting) words.push(`waits: ${job.waiting}`);
    if (job.vm_off) words.push("the VM is off");
    write(this.facts, words.join(" · "));
    this.#showTrouble(job);
    const hasMany = job.disks.length > 1;
    this.bar.update(hasMany ? job.progress : null, { live: !job.ended, waiting: job.paused ? "paused" : "waiting" });
    const verifying = job.step === "verify" && job.kind !== "verify";
    const disks = job.disks.map((disk, place) => ({ disk, place, now: { job, verifying } }));
    fill(this.disks, disks, (each) => each.place, ({ place }) => {
      const made = new Disk(job.id, place);
      this.#disks[place] = made;
      return { node: made.node, update: ({ disk, now }) => made.update(disk, now) };
    });
    this.#showActions(job);
  }

  #showTrouble(job) {
    const lines = [];
    if (job.error) lines.push([job.error.message, job.error.hint]);
    for (const line of job.leftover) lines.push([`not cleaned: ${line}`, "Try again, on the hub: sendense jobs clean"]);
    for (const [key, reason] of Object.entries(job.left_out)) lines.push([`disk ${key} is left out: ${reason}`, ""]);
    this.trouble.hidden = !lines.length;
    this.trouble.classList.toggle("bad", Boolean(job.error));
    fill(this.trouble, lines, ([text]) => text, () => {
      const text = make("p");
      const hint = make("p", { className: "hint" });
      const update = ([message, advice]) => {
        write(text, message);
        write(hint, advice);
      };
      return { node: make("div", {}, text, hint), update };
    });
  }

  #showActions(job) {
    const runs = !job.ended && !job.cancelled;
    const ends = ["failed", "cancelled", "different"].includes(job.state);
    this.actions.hidden = !this.#page.isOperator;
    const focused = document.activeElement;
    this.pause.hidden = !runs || job.paused;
    this.resume.hidden = !(runs && job.paused) && !(job.ended && ends);
    this.cancel.hidden = !runs;
    // A button that goes takes the focus with it: the next one has it then.
    if (focused?.hidden && this.actions.contains(focused)) {
      (this.#buttons().find((each) => !each.hidden) ?? this.heading).focus();
    }
  }

  #buttons() {
    return [this.resume, this.pause, this.cancel];
  }

  #button(text, action) {
    const button = make("button", { type: "button", hidden: true }, text);
    button.addEventListener("click", action);
    return button;
  }

  async #cancel() {
    const sure = await ask("Cancel this job?", CANCELLING, "Cancel the job", "Let it run");
    if (sure) await this.#act("cancel", "is to be cancelled");
  }

  async #act(verb, words) {
    if (this.#isAsking) return; // disabled buttons would lose the focus
    const { hub } = this.#page;
    this.refusal.replaceChildren();
    let job = null;
    this.#isAsking = true;
    try {
      job = await hub.post(`jobs/${this.#id}/${verb}`);
      this.#page.say(`${job.name} ${words}`);
    } catch (error) {
      this.refusal.replaceChildren(problem(error));
    }
    this.#isAsking = false;
    this.#acts += 1;
    if (job) this.#show(job);
    this.#page.lookNow();
  }

  /** New lines of its history, on top. */
  async #follow(signal) {
    const last = this.#events.at(-1)?.id;
    const path = `jobs/${this.#id}/events${last ? `?after=${last}` : ""}`;
    const found = await this.#page.hub.get(path, signal);
    if (!found.length) return;
    this.#events = [...this.#events, ...found].slice(-MOST_EVENTS);
    fill(this.history, this.#events.toReversed(), (event) => event.id, (event) => ({
      node: make("li", {}, make("time", { dateTime: event.time }, moment(event.time, true)), make("span", {}, event.text)),
      update: () => {},
    }));
  }
}
