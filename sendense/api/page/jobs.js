// All jobs, the latest first; operators start backups from here.

import { fill, make, write } from "./dom.js";
import { Bar } from "./progress.js";
import { startBackup } from "./start.js";
import { moment } from "./units.js";
import { Chip, began, took } from "./words.js";

const PAGE = 20;
const LOOK_SECONDS = 2;

export class JobsView {
  title = "Jobs";
  #page;
  #limit = PAGE;

  constructor(page) {
    this.#page = page;
    this.heading = make("h1", { tabIndex: -1 }, this.title);
    const start = make("button", { type: "button", className: "strong", hidden: !page.isOperator }, "Back up a VM");
    start.addEventListener("click", () => startBackup(page));
    this.list = make("ul", { className: "jobs" });
    this.empty = make("p", { className: "empty", hidden: true }, "There are no jobs yet.");
    this.more = make("button", { type: "button", hidden: true }, "Show older jobs");
    this.more.addEventListener("click", () => {
      this.#limit = Math.min(200, this.#limit + 60);
      page.lookNow();
    });
    this.node = make("div", {}, make("div", { className: "title" }, this.heading, start),
      this.empty, this.list, this.more);
  }

  async look(signal) {
    const { hub } = this.#page;
    const found = await hub.get(`jobs?limit=${this.#limit}`, signal);
    this.empty.hidden = found.jobs.length > 0;
    this.more.hidden = !found.following || this.#limit >= 200;
    fill(this.list, found.jobs, (job) => job.id, (job) => this.#row(job));
    return LOOK_SECONDS;
  }

  #row(first) {
    const chip = new Chip();
    const name = make("a", { href: `#/jobs/${first.id}` });
    const bar = new Bar(`Progress of ${first.name}`);
    const facts = make("p", { className: "facts" });
    const error = make("p", { className: "error", hidden: true });
    const node = make("li", {}, make("div", { className: "what" }, chip.node, name), facts, bar.node, error);
    const update = (job) => {
      write(name, job.name);
      chip.update(job);
      const time = took(job, this.#page.hub.now());
      write(facts, [job.id, moment(job.created), began(job), time].filter(Boolean).join(" · "));
      bar.update(job.ended ? null : job.progress, { live: true, waiting: job.paused ? "paused" : "waiting" });
      error.hidden = !job.error;
      write(error, job.error?.message ?? "");
    };
    return { node, update };
  }
}
