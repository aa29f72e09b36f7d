// What pages do beyond links and forms: times in the reader's own zone, copying, and the end of a session. Everything
// else works without this file.
"use strict";

(() => {
  const KEY = "sparkledger-zone";
  const months = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(" ");
  const two = (n) => String(n).padStart(2, "0");
  const remembered = () => { try { return localStorage.getItem(KEY); } catch { return null; } };
  const remember = (zone) => { try { localStorage.setItem(KEY, zone); } catch { /* then it is for this page alone */ } };
  let local = remembered() === "local";

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
    remember(local ? "local" : "utc");
    showTimes(document);
    showZone();
  });
  document.addEventListener("htmx:after:swap", () => showTimes(document));
  // A page that the browser kept may be of a session that is over.
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  // The live channel says so when the session has ended; what is loaded then is the page to sign in.
  document.addEventListener("ended", () => location.reload());
  // A tab that is opened in the background never becomes hidden: its live channel has to hear that it is.
  const sayIfHidden = () => setTimeout(() => { if (document.hidden) document.dispatchEvent(new Event("visibilitychange")); });
  document.addEventListener("htmx:sse:after:connection", sayIfHidden);
  // Its channel may have been there before this file was.
  addEventListener("load", sayIfHidden);
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
