// Without this file every page works; with it, pages follow what happens: every two seconds the number of the newest
// change is asked for, and when it is another one the same page is fetched again and the parts with data-live that
// differ are put in; all of the page, when it has become another one (its service is gone).
"use strict";
(() => {
  const line = document.getElementById("live");
  const POLL_MS = 2000, QUIET_MS = 15000, SETTLE_MS = 400, TYPING_MS = 200, AGAIN_MS = 5000;
  let paused = false, copying = false, wanted = 0, last = 0, timer = 0, newest = null, round = 0;

  const words = document.createElement("span");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Pause";
  line.replaceChildren(words, button);
  const say = (text) => { if (words.textContent !== text) words.textContent = text; };
  say("Connecting");

  const address = (element) => element && (element.getAttribute("href") || element.id);
  const places = (page) => [...page.querySelectorAll("[data-live]")].map((e) => e.id).join();
  const selected = (element) => {
    const selection = document.getSelection();
    return !selection.isCollapsed && selection.containsNode(element, true);
  };

  // Times are shown in the reader's zone, with UTC when pointed at; commands get a button that copies them.
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "your zone";
  const two = (n) => String(n).padStart(2, "0");
  function dress(page) {
    for (const time of page.querySelectorAll("time[datetime]")) {
      const at = new Date(time.getAttribute("datetime"));
      if (Number.isNaN(at.getTime())) continue;
      const clock = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
      const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} `;
      time.textContent = (time.classList.contains("day") ? day : "") + clock;
    }
    for (const words of page.querySelectorAll(".zone")) words.textContent = `times in ${zone}`;
    for (const code of page.querySelectorAll("code.command")) {
      if (code.nextElementSibling?.matches("button.copy")) continue;
      const copy = page.createElement("button");
      copy.type = "button";
      copy.className = "copy";
      copy.textContent = "Copy";
      copy.setAttribute("aria-label", `Copy: ${code.textContent}`);
      code.after(copy);
    }
  }
  async function copied(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch { // no clipboard without TLS, but on localhost: the old way
      const area = document.createElement("textarea");
      area.value = text;
      area.className = "unseen";
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  }
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("button.copy");
    if (!button) return;
    button.textContent = (await copied(button.previousElementSibling.textContent)) ? "Copied" : "Not copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });

  function put(fresh) { // whether everything is as in the fresh page now
    const focused = document.activeElement;
    let all = true;
    if (places(fresh) !== places(document)) {
      const old = document.getElementById("main"), found = fresh.getElementById("main");
      if (selected(old)) return false;
      old.replaceWith(document.adoptNode(found));
      if (old.contains(focused)) found.focus({ preventScroll: true });
    } else for (const old of document.querySelectorAll("[data-live]")) {
      const found = fresh.getElementById(old.id);
      if (found.outerHTML === old.outerHTML) continue;
      if (selected(old)) { all = false; continue; } // the user is copying
      const inside = old.contains(focused) && address(focused);
      const scrolled = [...old.querySelectorAll(".scroll")].map((s) => s.scrollLeft);
      const opened = [...old.querySelectorAll("details")].map((d) => d.open);
      old.replaceWith(document.adoptNode(found));
      found.querySelectorAll(".scroll").forEach((s, n) => { s.scrollLeft = scrolled[n] || 0; });
      found.querySelectorAll("details").forEach((d, n) => { d.open = Boolean(opened[n]); });
      if (inside) [...found.querySelectorAll("a, [tabindex]")].find((e) => address(e) === inside)?.focus({ preventScroll: true });
    }
    document.title = fresh.title;
    return all;
  }

  async function load(where) {
    const mine = ++wanted;
    last = Date.now();
    try {
      const answer = await fetch(where, { headers: { Accept: "text/html" } });
      const text = await answer.text();
      if (mine !== wanted) return;
      const fresh = new DOMParser().parseFromString(text, "text/html");
      if (!fresh.getElementById("live")) return say(`Not the bridge's page: status ${answer.status}`); // a proxy's, or a failure
      dress(fresh);
      copying = !put(fresh);
      if (paused) return;
      say(copying ? "Waits while text is selected" : "Live");
    } catch {
      newest = null; // the next round asks for the page again
      if (mine === wanted) say("The bridge does not answer");
    }
  }

  function soon(wait = SETTLE_MS) { // not at once: the rows that a page is made of may be a moment old
    if (paused || timer || document.hidden) return;
    timer = setTimeout(() => { timer = 0; load(location.href); }, wait);
  }

  async function follow() { // one round of questions at a time; a later call ends the earlier one
    const mine = ++round;
    while (mine === round && !paused && !document.hidden) {
      let wait = POLL_MS;
      try {
        const answer = await fetch(`${line.dataset.changes}?limit=0`, { headers: { Accept: "application/json" } });
        if (!answer.ok) throw new Error(`status ${answer.status}`);
        const found = (await answer.json()).newest;
        if (mine !== round) return;
        if (found !== newest || Date.now() - last > QUIET_MS) soon(); // ages and the curves go on without changes
        newest = found;
      } catch {
        if (mine !== round) return;
        newest = null;
        wait = AGAIN_MS;
        say("Not connected: trying again");
      }
      await new Promise((done) => setTimeout(done, wait));
    }
  }

  button.addEventListener("click", () => {
    paused = !paused;
    button.textContent = paused ? "Resume" : "Pause";
    newest = null;
    if (!paused) { say("Connecting"); return follow(); }
    clearTimeout(timer); // what is about to be looked at, or on its way, would change the page as well
    timer = 0;
    wanted += 1;
    say("Paused");
  });
  document.addEventListener("selectionchange", () => {
    if (copying && document.getSelection().isCollapsed) { copying = false; soon(); }
  });
  document.addEventListener("visibilitychange", () => { if (!paused && !document.hidden) follow(); });
  addEventListener("pageshow", (event) => { if (event.persisted && !paused) follow(); });

  const form = document.querySelector("form[role=search]");
  if (form) {
    let typing = 0;
    const search = () => {
      const said = [...new FormData(form)].filter(([, value]) => value);
      history.replaceState(null, "", "?" + new URLSearchParams(said));
      load(location.href);
    };
    form.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(search, TYPING_MS); });
    form.addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(typing); search(); });
  }
  dress(document);
  follow();
})();
