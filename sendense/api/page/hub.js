// The hub's API: each call with the token, under a deadline, its problems with the hint of what to do.

const QUICK_SECONDS = 35;
/** For a site to answer: longer than the hub waits for it. */
export const SITE_SECONDS = 150;

/** A clock that is off by more than this was set meanwhile. */
const STEP_MILLISECONDS = 5000;

/** What the hub refused, or failed to do. */
class Problem extends Error {
  constructor(status, detail, hint, retryAfter) {
    super(detail);
    this.status = status;
    this.hint = hint;
    this.retryAfter = retryAfter;
  }

  /** Whether asking again later may help. */
  get passes() {
    return this.status === 429 || this.status >= 500;
  }
}

/** The hub did not answer. */
class Away extends Error {
  constructor() {
    super("The hub does not answer.");
    this.hint = "It may be restarting, or the way to it is cut.";
    this.passes = true;
  }
}

/** A hub as the bearer of a token sees it. `refused` is called with the Problem when the token is not taken any more. */
export class Hub {
  #token;
  #refused;
  #ahead = null;

  constructor(token, refused) {
    this.#token = token;
    this.#refused = refused;
  }

  /** Milliseconds since the epoch by the hub's clock. */
  now() {
    return Date.now() + (this.#ahead ?? 0);
  }

  /** What an answer is dated: rounded down, and under way since, so the latest of such clocks is the nearest to the hub's. */
  #heed(date) {
    const ahead = Date.parse(date ?? "") - Date.now();
    const isAnother = this.#ahead === null || Math.abs(ahead - this.#ahead) > STEP_MILLISECONDS;
    if (ahead > this.#ahead || (isAnother && !Number.isNaN(ahead))) this.#ahead = ahead;
  }

  get(path, signal, seconds) {
    return this.#ask("GET", path, { signal, seconds });
  }

  post(path, body, seconds) {
    return this.#ask("POST", path, { body, seconds });
  }

  /** A post that makes one job however often it arrives. */
  order(path, body) {
    const random = crypto.getRandomValues(new Uint8Array(16));
    const key = Array.from(random, (each) => each.toString(16).padStart(2, "0")).join("");
    return this.#ask("POST", path, { body, seconds: SITE_SECONDS, headers: { "Idempotency-Key": key } });
  }

  async #ask(method, path, { signal, body, seconds = QUICK_SECONDS, headers = {} }) {
    const limit = AbortSignal.timeout(seconds * 1000);
    const sent = { ...headers, Authorization: `Bearer ${this.#token}`, Accept: "application/json" };
    if (body !== undefined) sent["Content-Type"] = "application/json";
    let answer, text;
    try {
      answer = await fetch(`api/v1/${path}`, {
        method,
        headers: sent,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal: signal ? AbortSignal.any([signal, limit]) : limit,
        cache: "no-store",
        credentials: "omit",
      });
      text = await answer.text();
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Away();
    }
    this.#heed(answer.headers.get("date"));
    if (answer.ok) return text ? JSON.parse(text) : null;
    const problem = problemOf(answer, text);
    if (problem.status === 401) this.#refused(problem);
    throw problem;
  }
}

function problemOf(answer, text) {
  const retry = Number(answer.headers.get("retry-after")) || 0;
  try {
    const { detail, hint } = JSON.parse(text);
    if (typeof detail === "string") return new Problem(answer.status, detail, hint ?? "", retry);
  } catch {
    // Something on the way answered in the hub's place.
  }
  return new Problem(answer.status, `The hub answered ${answer.status} without saying why.`, "", retry);
}
