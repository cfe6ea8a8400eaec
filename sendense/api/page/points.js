// Restore points by VM, each chain drawn from its full to the latest incremental.

import { fill, make, write } from "./dom.js";
import { bytes, count, moment } from "./units.js";

const LOOK_SECONDS = 10;

/** VMs whose points are shown without being asked for. */
const OPEN_VMS = 3;

export class PointsView {
  title = "Restore points";
  #page;
  #isAsked = false;

  constructor(page) {
    this.#page = page;
    this.heading = make("h1", { tabIndex: -1 }, this.title);
    this.usage = make("p", { className: "facts" });
    this.empty = make("p", { className: "empty", hidden: true }, "There are no restore points yet.");
    this.vms = make("div", { className: "vms" });
    this.node = make("div", {}, make("div", { className: "title" }, this.heading), this.usage, this.empty, this.vms);
  }

  async look(signal) {
    const { hub } = this.#page;
    const found = (await hub.get("points", signal)).filter((vm) => vm.points.length + vm.broken.length);
    this.empty.hidden = found.length > 0;
    const isOpen = found.length <= OPEN_VMS;
    fill(this.vms, found, (vm) => vm.vm.uuid, (vm) => vmPart(vm, isOpen));
    if (!this.#isAsked) {
      const usage = await hub.get("repository", signal); // looks at every image, so it is asked for once
      this.#isAsked = true;
      const words = [usage.path, `${bytes(usage.stored)} stored`, `${bytes(usage.free)} free`];
      write(this.usage, words.join(" · "));
    }
    return LOOK_SECONDS;
  }
}

function vmPart({ vm, path }, isOpen) {
  const name = make("h2", {}, vm.name);
  const facts = make("span", { className: "facts" });
  const where = make("p", { className: "facts" }, [path, vm.uuid].filter(Boolean).join(" · "));
  const list = make("ol", { className: "points" });
  const node = make("details", { open: isOpen }, make("summary", {}, name, facts), where, list);
  const update = (found) => {
    const { points, broken } = found;
    const words = [count(points.length, "restore point")];
    if (points.length) words.push(`the latest ${moment(points.at(-1).created)}`);
    if (broken.length) words.push(`${broken.length} broken`);
    write(facts, words.join(" · "));
    fill(list, inOrder(points, broken), (point) => point.id, pointPart);
  };
  return { node, update };
}

/** Sound and broken, oldest first: an id begins with its time. `isLast`: nothing shown is built on it. */
function inOrder(points, broken) {
  const parents = new Set(points.flatMap((point) => point.disks.map((disk) => disk.parent)));
  const all = [...points, ...broken.map((each) => ({ ...each, isBroken: true }))];
  return all.map((point) => ({ ...point, isLast: !parents.has(point.id) })).sort((a, b) => (a.id < b.id ? -1 : 1));
}

function pointPart() {
  const time = make("b");
  const mode = make("span", { className: "mode" });
  const facts = make("span", { className: "facts" });
  const reason = make("p", { className: "hint" });
  const id = make("code");
  const node = make("li", {}, make("span", { className: "knot", "aria-hidden": "true" }),
    make("div", {}, make("p", {}, time, mode, id), make("p", {}, facts), reason));
  const update = (point) => {
    write(id, point.id);
    const kind = point.isBroken ? "broken" : point.mode;
    node.className = `${kind}${point.isLast ? " last" : ""}`;
    write(mode, kind);
    if (point.isBroken) {
      write(reason, point.reason);
      return;
    }
    write(time, moment(point.created));
    const size = point.disks.reduce((sum, disk) => sum + disk.size, 0);
    const words = [`${count(point.disks.length, "disk")} of ${bytes(size)}`, `${bytes(point.copied)} copied`];
    words.push(point.damaged ? "damaged" : point.verified ? `verified ${moment(point.verified)}` : "never verified");
    const parents = [...new Set(point.disks.map((disk) => disk.parent).filter(Boolean))];
    if (parents.length) words.push(`built on ${parents.join(", ")}`);
    write(facts, words.join(" · "));
    write(reason, [point.damaged, point.reason && `full, as ${point.reason}`].filter(Boolean).join(" · "));
  };
  return { node, update };
}
