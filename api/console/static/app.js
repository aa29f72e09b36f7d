// What pages do beyond links and forms: times in the reader's own zone, the count of new events, copying, and the end of
// a session. Everything else works without this file.
"use strict";

(() => {
  const ZONE = "sparkledger-zone";
  const months = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(" ");
  const two = (n) => String(n).padStart(2, "0");
  const remembered = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
  const remember = (name, value) => { try { localStorage.setItem(name, value); } catch { /* then it is for this page alone */ } };
  let local = remembered(ZONE) === "local";

  function offset(date) {
    const minutes = -date.getTimezoneOffset();
    const size = Math.abs(minutes);
    return minutes === 0 ? "UTC" : `UTC${minutes < 0 ? "−" : "+"}${Math.floor(size / 60)}${size % 60 ? `:${two(size % 60)}` : ""}`;
  }

  function zoneName() {
    try { return Intl.DateTimeFormat().resolvedOptions().timeZone || "local time"; } catch { return "local time"; }
  }

  // The same shape as the server's, so that nothing jumps.
  function shown(element) {
    const date = new Date(element.dateTime);
    if (Number.isNaN(date.getTime())) return element.dataset.utc;
    const exact = "exact" in element.dataset;
    const fraction = exact ? (/\.\d+/.exec(element.dateTime) || [""])[0].replace(/0+$/, "") : "";
    const clock = `${two(date.getHours())}:${two(date.getMinutes())}${exact ? `:${two(date.getSeconds())}${fraction}` : ""}`;
    return `${date.getDate()} ${months[date.getMonth()]} ${date.getFullYear()}, ${clock} ${offset(date)}`;
  }

  function showTimes(root) {
    for (const element of root.querySelectorAll("time")) {
      element.dataset.utc ??= element.textContent;
      element.textContent = local ? shown(element) : element.dataset.utc;
    }
  }

  function showZone() {
    const name = document.getElementById("zone");
    const button = document.getElementById("zone-switch");
    if (!name || !button) return;
    name.textContent = local ? zoneName() : "UTC";
    button.textContent = local ? "Show UTC" : "Show local time";
    button.hidden = false;
  }

  document.getElementById("zone-switch")?.addEventListener("click", () => {
    local = !local;
    remember(ZONE, local ? "local" : "utc");
    showTimes(document);
    showZone();
  });
  document.addEventListener("htmx:after:swap", () => showTimes(document));
  // A page that the browser kept may be of a session that is over.
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  // The live channel says which event is the last, and nothing of it. Whatever ends the channel, an answer that is none
  // among it, the page asks again: after a second, then less and less often, and at least every fifteen. A tab that
  // nobody sees asks for nothing.
  const live = document.getElementById("live");
  const PAUSED = "sparkledger-paused";
  const FIRST_MS = 1_000, LONGEST_MS = 15_000, SILENT_MS = 35_000;
  let paused = remembered(PAUSED) === "1", channel = null, timer = 0, wait = FIRST_MS;

  function hang() {
    clearTimeout(timer);
    channel?.close();
    channel = null;
  }

  function lost() {
    hang();
    // Pages that lost it together do not all ask together.
    timer = setTimeout(listen, wait * (0.7 + 0.6 * Math.random()));
    wait = Math.min(2 * wait, LONGEST_MS);
  }

  function expect() {
    clearTimeout(timer);
    timer = setTimeout(lost, SILENT_MS);
  }

  function listen() {
    hang();
    if (paused || document.hidden) return;
    channel = new EventSource(live.dataset.address);
    channel.onmessage = (message) => {
      wait = FIRST_MS;
      expect();
      showNew(Number(message.data) - Number(live.dataset.seen));
    };
    channel.onerror = lost;
    // What is loaded then is the page to sign in.
    channel.addEventListener("ended", () => location.reload());
    expect();
  }

  function showNew(count) {
    if (!(count > 0)) return;
    const link = live.querySelector("a") ?? live.appendChild(document.createElement("a"));
    link.href = live.dataset.trail || location.href;
    link.textContent = `${count.toLocaleString("en")} new event${count === 1 ? "" : "s"}${live.dataset.trail ? "" : ": load the page again"}`;
  }

  function showPause(button) {
    button.textContent = paused ? "Count new events again" : "Stop counting new events";
    button.hidden = false;
  }

  if (live) {
    document.addEventListener("visibilitychange", () => { wait = FIRST_MS; listen(); });
    addEventListener("pagehide", hang);
    const button = document.getElementById("live-switch");
    button.addEventListener("click", () => {
      paused = !paused;
      remember(PAUSED, paused ? "1" : "0");
      showPause(button);
      listen();
    });
    showPause(button);
    listen();
  }
  // A menu closes when something else is clicked, or with Escape.
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of document.querySelectorAll("details.menu[open]")) { menu.open = false; menu.querySelector("summary").focus(); }
  });

  // What has to be copied exactly is copied by a click; without this file it is selected as any text.
  for (const button of document.querySelectorAll("[data-copy]")) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
      button.textContent = "Copied";
    });
  }

  if (local) showTimes(document);
  showZone();
})();
