// Looks at the hub again and again: never twice at once, not while nobody sees the page, and less often while it is away.

const MOST_SECONDS = 10;

/** Seconds between two looks that make one request, and at least so many for each request: 1200 a minute are allowed. */
const LEAST_SECONDS = 1;
const REQUEST_SECONDS = 0.15;

/** The seconds until the next look, after one that made so many requests. */
export function pace(requests) {
  return Math.max(LEAST_SECONDS, requests * REQUEST_SECONDS);
}

export class Poll {
  #look;
  #tell;
  #end = new AbortController();
  #wake = () => {};
  #again = false;

  /**
   * `look(signal)` resolves to the seconds until the next one, or null to end; `tell(error, seconds)` hears of what it threw,
   * and of null when all is well again. An error that does not pass ends the looking.
   */
  constructor(look, tell) {
    this.#look = look;
    this.#tell = tell;
    document.addEventListener("visibilitychange", () => this.#wake(), { signal: this.#end.signal });
    this.#run();
  }

  /** Look now. */
  now() {
    this.#again = true;
    this.#wake();
  }

  stop() {
    this.#end.abort();
    this.#wake();
  }

  async #run() {
    const { signal } = this.#end;
    let misses = 0;
    let seconds = 0;
    while (seconds !== null && !signal.aborted) {
      this.#again = false;
      try {
        seconds = await this.#look(signal);
        if (signal.aborted) return;
        misses = 0;
        this.#tell(null);
      } catch (error) {
        if (signal.aborted) return;
        misses += 1;
        seconds = error.passes === false ? null : Math.max(error.retryAfter ?? 0, Math.min(2 ** misses / 2, MOST_SECONDS));
        this.#tell(error, seconds);
      }
      if (seconds !== null) await this.#rest(seconds);
    }
  }

  async #rest(seconds) {
    const until = performance.now() + seconds * 1000;
    while (!this.#end.signal.aborted && !this.#again && (document.hidden || performance.now() < until)) {
      await new Promise((resolve) => {
        const left = Math.max(0, until - performance.now());
        const timer = document.hidden ? 0 : setTimeout(resolve, left);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }
}
