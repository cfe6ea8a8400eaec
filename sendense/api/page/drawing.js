// Draws the cells of a map on a canvas: those that changed, and in each frame for a bounded time.

import { ALL, DONE, FAILED, RUNNING, SENT, STATES, TODO } from "./map.js";

/** Cells drawn in one frame: for so long and at most so many, as what is drawn is to be painted; 50 000 take half a second. */
const FRAME_MILLISECONDS = 4;
const CELLS_PER_FRAME = 2000;

/** Cells between two looks at the time. */
const CELLS_PER_LOOK = 100;

/**
 * Sides of a cell in pixels, with the gap to the next one; the largest with which the map is not higher than HIGH is taken.
 * The smallest have no gap.
 */
const SIDES = [24, 20, 16, 14, 12, 10, 9, 8, 7, 6, 5, 4, 3];
const HIGH = 300;

/** Smaller cells have no room for a mark beside their colour; the legend's counts say the same. */
const LEAST_MARKED = 7;

/** Colours that there are for nodes; the next one begins again. */
export const NODE_COLOURS = 8;

export class Drawing {
  /** "state", or "node": batches that are done or running have their node's colour. */
  colours = "state";
  /** What alone is shown in full: {state}, {worker}, or null for everything. */
  only = null;
  columns = 1;
  side = SIDES[0];
  #context;
  #map;
  /** All cells from this one on are to be drawn, and before it those in `#due`. */
  #next = 0;
  #due = [];
  #isDue = new Uint8Array(0);
  #frame = 0;
  #palette = null;

  constructor(canvas, map) {
    this.canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.#map = map;
    canvas.dataset.drawn = 0;
  }

  /** Make room for all cells in so many pixels, and draw them. */
  lay(width) {
    const { batches } = this.#map;
    const columns = (side) => Math.max(1, Math.floor(width / side));
    this.side = SIDES.find((side) => Math.ceil(batches / columns(side)) * side <= HIGH) ?? SIDES.at(-1);
    this.columns = Math.min(columns(this.side), Math.max(1, batches));
    const rows = Math.max(1, Math.ceil(batches / this.columns));
    const scale = window.devicePixelRatio || 1;
    const [wide, high] = [this.columns * this.side, rows * this.side];
    this.canvas.width = Math.round(wide * scale);
    this.canvas.height = Math.round(high * scale);
    this.canvas.style.width = `${wide}px`;
    this.canvas.style.height = `${high}px`;
    this.#context.setTransform(scale, 0, 0, scale, 0, 0);
    this.draw(ALL);
  }

  /** The colours are others: draw everything again. */
  recolour() {
    this.#palette = null;
    this.draw(ALL);
  }

  /** Have these cells drawn, or ALL. */
  draw(changed) {
    if (changed === ALL) {
      this.#next = 0;
      this.#due = [];
      this.#isDue = new Uint8Array(this.#map.batches);
    } else {
      for (const batch of changed) {
        if (batch >= this.#next || this.#isDue[batch]) continue;
        this.#isDue[batch] = 1;
        this.#due.push(batch);
      }
    }
    if (this.#isBehind && !this.#frame) this.#frame = requestAnimationFrame(() => this.#drawDue());
  }

  /** Where a cell is, in pixels from the canvas's corner. */
  place(batch) {
    return [(batch % this.columns) * this.side, Math.floor(batch / this.columns) * this.side];
  }

  /** The batch at a place, or -1. */
  batchAt(x, y) {
    const column = Math.floor(x / this.side);
    const batch = Math.floor(y / this.side) * this.columns + column;
    return column >= 0 && column < this.columns && batch >= 0 && batch < this.#map.batches ? batch : -1;
  }

  stop() {
    cancelAnimationFrame(this.#frame);
  }

  get #isBehind() {
    return this.#due.length > 0 || this.#next < this.#map.batches;
  }

  #drawDue() {
    this.#frame = 0;
    this.#palette ??= readPalette();
    const until = performance.now() + FRAME_MILLISECONDS;
    let drawn = 0;
    while (this.#isBehind && drawn < CELLS_PER_FRAME && (drawn % CELLS_PER_LOOK || performance.now() < until)) {
      const batch = this.#due.length ? this.#due.pop() : this.#next++;
      this.#isDue[batch] = 0;
      this.#drawCell(batch);
      drawn += 1;
    }
    this.canvas.dataset.drawn = Number(this.canvas.dataset.drawn) + drawn;
    if (this.#isBehind) this.#frame = requestAnimationFrame(() => this.#drawDue());
  }

  #drawCell(batch) {
    const [x, y] = this.place(batch);
    const context = this.#context;
    const { side } = this;
    const size = side - (side > 5 ? 2 : side > 4 ? 1 : 0);
    const state = this.#map.states[batch];
    const owner = this.#map.owners[batch];
    const { only } = this;
    const isShown = !only || (only.worker ? only.worker === owner : only.state === state);
    if (!isShown) {
      context.clearRect(x, y, side, side);
      context.globalAlpha = 0.15;
    }
    context.fillStyle = this.#colour(state, owner);
    context.fillRect(x, y, size, size);
    if (side >= LEAST_MARKED) this.#mark(state, x, y, size);
    context.globalAlpha = 1;
  }

  #colour(state, owner) {
    const byNode = this.colours === "node" && owner && (state === DONE || state === RUNNING);
    return byNode ? this.#palette.nodes[(owner - 1) % NODE_COLOURS] : this.#palette.states[state];
  }

  /** What tells a state from the others without its colour. */
  #mark(state, x, y, size) {
    const context = this.#context;
    if (state === DONE) return;
    context.fillStyle = context.strokeStyle = this.#palette.mark;
    context.lineWidth = Math.max(1, size / 9);
    const third = size / 3;
    if (state === TODO) {
      context.clearRect(x + 1, y + 1, size - 2, size - 2);
    } else if (state === SENT) {
      context.fillRect(x + third, y + third, third, third);
    } else if (state === RUNNING) {
      context.beginPath();
      context.moveTo(x + third, y + size / 5);
      context.lineTo(x + third, y + (size * 4) / 5);
      context.lineTo(x + (size * 4) / 5, y + size / 2);
      context.fill();
    } else {
      context.beginPath();
      context.moveTo(x + 1, y + size - 1);
      context.lineTo(x + size - 1, y + 1);
      if (state === FAILED) {
        context.moveTo(x + 1, y + 1);
        context.lineTo(x + size - 1, y + size - 1);
      }
      context.stroke();
    }
  }
}

/** The page's colours, which follow the user's scheme. */
function readPalette() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    states: STATES.map(([, name]) => colour(`cell-${name}`)),
    nodes: Array.from({ length: NODE_COLOURS }, (_, number) => colour(`node-${number + 1}`)),
    mark: colour("mark"),
  };
}
