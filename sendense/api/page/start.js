// Starts a backup: of which VM, how, and whether it is read back.

import { open, problem } from "./dialogs.js";
import { make } from "./dom.js";
import { SITE_SECONDS } from "./hub.js";

const MODES = [
  ["auto", "Automatic: incremental where that is possible"],
  ["full", "Full"],
  ["incremental", "Incremental, or not at all"],
];

export function startBackup(page) {
  const vm = make("select", { required: true, disabled: true }, make("option", { value: "" }, "Asking the sites…"));
  const mode = make("select", {}, ...MODES.map(([value, text]) => make("option", { value }, text)));
  const verify = make("input", { type: "checkbox" });
  const trouble = make("div");
  const leave = make("button", { type: "button" }, "Not now");
  const start = make("button", { type: "submit", className: "strong", disabled: true }, "Start the backup");
  const form = make("form", {},
    make("label", {}, "VM", vm), make("label", {}, "Mode", mode),
    make("label", { className: "check" }, verify, "Read it back afterwards, and compare"),
    trouble, make("div", { className: "actions" }, leave, start));
  const end = new AbortController();
  const dialog = open("Back up a VM", () => end.abort(), form);
  leave.addEventListener("click", () => dialog.close());
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    begin();
  });
  listVms();

  async function listVms() {
    try {
      const found = await page.hub.get("vms", end.signal, SITE_SECONDS);
      const options = found.map(({ ref, path, disks }) => {
        const has = disks.some((disk) => !disk.refusal);
        const value = JSON.stringify({ vm: ref.moref, site: ref.site });
        const why = has ? "" : ": none of its disks can be backed up";
        const text = `${ref.name} (${path || ref.moref}, site ${ref.site})${why}`; // its name first: it is found by typing
        return make("option", { value, disabled: !has }, text);
      });
      vm.replaceChildren(make("option", { value: "" }, "Choose one"), ...options);
      vm.disabled = start.disabled = !options.length;
      if (options.length) vm.focus();
      else vm.replaceChildren(make("option", { value: "" }, "The sites have no VMs"));
    } catch (error) {
      if (end.signal.aborted) return;
      vm.replaceChildren(make("option", { value: "" }, "Not known"));
      trouble.replaceChildren(problem(error));
    }
  }

  async function begin() {
    start.disabled = true;
    trouble.replaceChildren();
    try {
      const job = await page.hub.order("backups", { ...JSON.parse(vm.value), mode: mode.value, verify: verify.checked });
      dialog.close();
      page.say(`${job.name} has begun`);
      page.go(`#/jobs/${job.id}`);
    } catch (error) {
      trouble.replaceChildren(problem(error));
      start.disabled = false;
    }
  }
}
