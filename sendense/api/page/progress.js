// How far a job is: its bar, its rate and the time left, as the commands show them.

import { make, write } from "./dom.js";
import { bytes, count, seconds } from "./units.js";

/** The rate is the mean over so long: shorter jumps about, longer hides a stall. */
const RATE_MILLISECONDS = 10_000;

/** A rate rests on so long at least: over less it is that of one burst, or of the pause between two. */
const SURE_MILLISECONDS = 5_000;

/** Bytes stored, and those under way. */
function moved(progress) {
  return Math.min(progress.data, progress.done + progress.active.reduce((sum, each) => sum + each.done, 0));
}

/** A bar with its words, there once `update` is given a Progress with a plan. */
export class Bar {
  #samples = [];

  constructor(label) {
    this.bar = make("progress", { max: 1, "aria-label": label });
    this.words = make("p", { className: "numbers" });
    this.node = make("div", { className: "progress" }, this.bar, this.words);
  }

  update(progress, { live, waiting = "waiting" } = {}) {
    this.node.hidden = !progress?.batches;
    if (this.node.hidden) {
      this.#samples = [];
      return;
    }
    const done = live ? moved(progress) : progress.done;
    const share = progress.data ? done / progress.data : progress.batches_done / progress.batches;
    const rounded = Math.floor(share * 1000) / 1000;
    if (this.bar.value !== rounded) this.bar.value = rounded;
    const words = [`${bytes(done)} of ${bytes(progress.data)}`];
    if (live) {
      const rate = this.#rate(progress.copied);
      if (rate !== null) words.push(`${bytes(rate)}/s`, rate ? `${seconds((progress.data - done) / rate)} left` : waiting);
    }
    words.push(`batch ${progress.batches_done.toLocaleString("en")}/${progress.batches.toLocaleString("en")}`);
    if (progress.failed) words.push(`${count(progress.failed, "batch", "batches")} given up`);
    if (progress.retries) words.push(count(progress.retries, "retry", "retries"));
    if (progress.stalls) words.push(count(progress.stalls, "stall"));
    write(this.words, words.join(", "));
  }

  /** Bytes a second; null while that is not known. */
  #rate(copied) {
    const now = performance.now();
    const samples = this.#samples;
    if (samples.length && copied < samples.at(-1)[1]) samples.length = 0; // another phase began
    samples.push([now, copied]);
    while (now - samples[0][0] > RATE_MILLISECONDS && now - samples[1][0] >= SURE_MILLISECONDS) samples.shift();
    const [passed, moved] = [now - samples[0][0], copied - samples[0][1]];
    return passed >= SURE_MILLISECONDS ? (moved * 1000) / passed : null;
  }
}
