// What a job is at, in the words of `sendense jobs`.

import { make, write } from "./dom.js";
import { moment, seconds } from "./units.js";

/** Its state, or the step that it is at. */
function standing(job) {
  if (job.ended) return job.state;
  if (job.cancelled) return `${job.step}, to be cancelled`;
  if (job.paused) return "paused";
  return job.started ? job.step : "queued";
}

const MOODS = { succeeded: "good", failed: "bad", different: "bad", cancelled: "calm" };
const SIGNS = { good: "✓", bad: "✕", calm: "–", busy: "▸", rest: "‖" };

function mood(job) {
  if (job.ended) return MOODS[job.state] ?? "calm";
  return job.paused || !job.started ? "rest" : "busy";
}

/** A label with the state; the sign and the word say what the colour does. */
export class Chip {
  constructor() {
    this.sign = make("span", { "aria-hidden": "true" });
    this.text = make("span");
    this.node = make("span", { className: "chip" }, this.sign, this.text);
  }

  update(job) {
    const found = mood(job);
    this.node.className = `chip ${found}`;
    write(this.sign, SIGNS[found]);
    write(this.text, standing(job));
  }
}

/** When it began, the last time that it was resumed; empty where that is not another minute than when it was submitted. */
export function began(job) {
  const time = job.started && moment(job.started);
  return time && time !== moment(job.created) ? `began ${time}` : "";
}

/** How long it has taken so far, or took; empty before it began. `now`: milliseconds by the hub's clock. */
export function took(job, now) {
  if (!job.started) return "";
  const end = job.ended ? Date.parse(job.ended) : now;
  return seconds(Math.max(0, (end - Date.parse(job.started)) / 1000));
}

/** A worker as people call it: the one that copies for a node has the node's name. */
export function nodeName(worker) {
  return worker.replace(/-(copy|node)$/, "");
}
