// Sizes and times in the words of the commands (sendense/units.py).

const SUFFIXES = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Three significant digits and a binary suffix: 1536 is "1.50 KiB". */
export function bytes(count) {
  let power = 0;
  while (Math.abs(count) >= 999.5 && power < SUFFIXES.length - 1) {
    count /= 1024;
    power += 1;
  }
  const digits = !power || Math.abs(count) >= 99.95 ? 0 : Math.abs(count) >= 9.995 ? 1 : 2;
  return `${count.toFixed(digits)} ${SUFFIXES[power]}`;
}

/** "0.8 s", "42 s", "3:05", "2:10:00". */
export function seconds(count) {
  if (count < 10) return `${Math.max(0, count).toFixed(1)} s`;
  const whole = Math.round(count);
  if (whole < 60) return `${whole} s`;
  const two = (number) => String(number).padStart(2, "0");
  const minutes = Math.floor(whole / 60);
  const rest = `${two(whole % 60)}`;
  return minutes < 60 ? `${minutes}:${rest}` : `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${rest}`;
}

/** A time of the hub's as this browser's user reads it: "2026-11-23 02:41". */
export function moment(text, withSeconds = false) {
  const time = new Date(text);
  const two = (number) => String(number).padStart(2, "0");
  const day = `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;
  const clock = `${two(time.getHours())}:${two(time.getMinutes())}`;
  return `${day} ${clock}${withSeconds ? `:${two(time.getSeconds())}` : ""}`;
}

/** What `moment` counts in: "Europe/Oslo, GMT+1". */
export function zone() {
  const format = new Intl.DateTimeFormat("en", { timeZoneName: "shortOffset" });
  const offset = format.formatToParts().find((part) => part.type === "timeZoneName").value;
  const { timeZone } = format.resolvedOptions();
  return timeZone === "UTC" ? timeZone : `${timeZone}, ${offset}`;
}

/** "1 batch", "2 batches". */
export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}
