// The map of a copy as this page knows it: for each batch its state, and the worker that stored it or is at it.

export const [TODO, SENT, RUNNING, WAITING, DONE, FAILED] = [0, 1, 2, 3, 4, 5];

/** How a state is called, and the class of its colour. */
export const STATES = [
  ["to do", "todo"],
  ["sent to a node", "sent"],
  ["running", "running"],
  ["waiting for its retry", "waiting"],
  ["done", "done"],
  ["given up", "failed"],
];

const UNSTORED = "0".charCodeAt(0);

/** All cells changed: there are others than before. */
export const ALL = null;

export class CopyMap {
  cursor = "";
  batches = 0;
  workers = [];
  /** By state. */
  counts = [0, 0, 0, 0, 0, 0];
  /** Batches that each worker stored or is at, as in `workers`. */
  byWorker = [];
  states = new Uint8Array(0);
  /** Of each batch the place of its worker in `workers`, counted from 1; 0: none. */
  owners = new Uint16Array(0);
  /** Bytes that running batches have moved. */
  moved = new Map();
  #stored = new Uint16Array(0);
  #pending = new Map();

  /** Take the hub's answer in; returns the batches whose cells changed, or ALL. */
  take(answer) {
    if (!answer.batches && this.batches) return []; // the job is being cleaned: what was to be seen stays
    this.cursor = answer.cursor;
    const resized = answer.batches !== this.batches;
    if (resized) this.#resize(answer.batches);
    const touched = [];
    if (answer.whole) this.#takeWhole(answer.whole, touched);
    for (const [worker, batches] of Object.entries(answer.stored)) {
      const place = this.#place(worker);
      for (const batch of batches) this.#store(batch, place, touched);
    }
    for (const batch of answer.undone) this.#store(batch, 0, touched);
    if (answer.pending) this.#takePending(answer.pending, touched);
    const changed = [];
    for (const batch of touched) if (this.#settle(batch)) changed.push(batch);
    return resized ? ALL : changed;
  }

  /** Nothing is known of it any more; returns ALL. */
  clear() {
    this.cursor = "";
    this.#pending.clear();
    this.#stored = new Uint16Array(0);
    this.states = new Uint8Array(0);
    this.owners = new Uint16Array(0);
    this.#resize(0);
    return ALL;
  }

  /** A job that succeeded has all of it stored, also what was stored since the last look, by whomever. */
  complete() {
    const changed = [];
    this.#pending.clear();
    for (let batch = 0; batch < this.batches; batch += 1) {
      if (this.states[batch] !== DONE && this.#enter(batch, DONE, 0)) changed.push(batch);
    }
    return changed;
  }

  #resize(batches) {
    const before = this.states.length;
    const grown = (array, kind) => {
      const found = new kind(batches);
      found.set(array.subarray(0, batches));
      return found;
    };
    this.states = grown(this.states, Uint8Array);
    this.owners = grown(this.owners, Uint16Array);
    this.#stored = grown(this.#stored, Uint16Array);
    this.batches = batches;
    this.counts = [0, 0, 0, 0, 0, 0];
    this.byWorker = this.workers.map(() => 0);
    const kept = Math.min(before, batches);
    this.counts[TODO] = batches - kept;
    for (let batch = 0; batch < kept; batch += 1) {
      this.counts[this.states[batch]] += 1;
      if (this.owners[batch]) this.byWorker[this.owners[batch] - 1] += 1;
    }
  }

  #takeWhole(whole, touched) {
    const places = [0, ...whole.workers.map((worker) => this.#place(worker))];
    for (let batch = 0; batch < this.batches; batch += 1) {
      const cell = batch < whole.cells.length ? whole.cells.charCodeAt(batch) - UNSTORED : 0;
      this.#store(batch, places[cell], touched);
    }
  }

  #store(batch, place, touched) {
    if (batch >= this.batches || this.#stored[batch] === place) return;
    this.#stored[batch] = place;
    touched.push(batch);
  }

  #takePending(pending, touched) {
    for (const batch of this.#pending.keys()) touched.push(batch);
    this.#pending = new Map();
    this.moved = new Map();
    const enter = (batch, state, place) => {
      if (batch >= this.batches) return;
      this.#pending.set(batch, [state, place]);
      touched.push(batch);
    };
    const runs = [[pending.sent, SENT], [pending.waiting, WAITING], [pending.failed, FAILED]];
    for (const [found, state] of runs) {
      for (const [first, last] of found) for (let batch = first; batch <= last; batch += 1) enter(batch, state, 0);
    }
    for (const { batch, worker, done } of pending.running) {
      enter(batch, RUNNING, this.#place(worker));
      this.moved.set(batch, done);
    }
  }

  #settle(batch) {
    if (batch >= this.batches) return false;
    const [state, place] = this.#pending.get(batch) ?? [this.#stored[batch] ? DONE : TODO, this.#stored[batch]];
    return this.#enter(batch, state, place);
  }

  #enter(batch, state, place) {
    const before = this.owners[batch];
    if (this.states[batch] === state && before === place) return false;
    this.counts[this.states[batch]] -= 1;
    this.counts[state] += 1;
    if (before) this.byWorker[before - 1] -= 1;
    if (place) this.byWorker[place - 1] += 1;
    this.states[batch] = state;
    this.owners[batch] = place;
    return true;
  }

  #place(worker) {
    const found = this.workers.indexOf(worker);
    if (found >= 0) return found + 1;
    this.byWorker.push(0);
    return this.workers.push(worker);
  }
}
