// Asks for a token until the hub takes one.

import { problem } from "./dialogs.js";
import { make } from "./dom.js";
import { Hub } from "./hub.js";

export class SignIn {
  title = "Sign in";

  /** `why`: what the hub said of the token before; `taken(token, who)` is called with one that it takes. */
  constructor(why, taken) {
    this.heading = make("h1", { tabIndex: -1 }, "Sign in");
    this.input = make("input", {
      type: "password", required: true, autocomplete: "off", spellcheck: false, autofocus: true,
    });
    const enter = make("button", { type: "submit", className: "strong" }, "Sign in");
    const trouble = make("div", {}, why ? refusal(why) : "");
    const form = make("form", {}, make("label", {}, "Token", this.input), trouble, enter);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      enter.disabled = true;
      const token = this.input.value.trim();
      try {
        taken(token, await new Hub(token, () => {}).get("whoami"));
      } catch (error) {
        trouble.replaceChildren(refusal(error));
        this.input.select();
        this.input.focus();
      } finally {
        enter.disabled = false;
      }
    });
    this.node = make("div", { className: "signin" }, this.heading, form,
      make("p", { className: "hint" }, "A token is made on the hub, and shown once: ",
        make("code", {}, "sendense token create --role operator"),
        ". One of a reader may look; one of an operator may also start, pause, resume and cancel. It is kept until this tab is closed."));
  }
}

/** Why a token was not taken; the hint is for programs, and what people do about it is on the page. */
function refusal(error) {
  return problem(error.status === 401 ? { message: error.message, hint: "" } : error);
}
