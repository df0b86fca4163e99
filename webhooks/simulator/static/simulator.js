"use strict";
// Renews what the page shows, about once a second. It never touches a box that somebody types into: only the parts
// marked data-live change, and in them only the entries (by their id) that are new or other than they came.
(() => {
  const EVERY = 1000;
  const form = document.getElementById("page");
  const news = document.getElementById("news");
  const came = new Map();  // id of an entry: its HTML as the server gave it, before anybody opened or chose anything
  let version = form.dataset.version;
  let busy = false;

  const language = () => (document.documentElement.lang === "en" ? "&lang=en" : "");
  const boxes = () => new Map([...form.querySelectorAll("[data-box]")].map((box) => [box.dataset.box, box]));
  const entries = (part) => [...part.children];

  function remember(part) {
    for (const entry of entries(part)) came.set(entry.id, entry.outerHTML);
  }

  // Bring `here` to the entries of `part`. data-live="add": what is there stays, for somebody may be typing in it.
  function match(here, part) {
    const adds = here.dataset.live === "add";
    const atEnd = here.scrollHeight - here.scrollTop - here.clientHeight < 40;
    let place = here.firstElementChild;
    let grown = false;
    for (const entry of entries(part)) {
      const html = entry.outerHTML;
      const old = document.getElementById(entry.id);
      if (old && old.parentElement === here && (adds || came.get(entry.id) === html)) {
        if (old === place) place = old.nextElementSibling;
        else here.insertBefore(old, place);
        continue;
      }
      came.set(entry.id, html);
      grown = true;
      if (old && old.parentElement === here) {
        if (old === place) place = old.nextElementSibling;
        old.remove();
      }
      here.insertBefore(document.adoptNode(entry), place);
    }
    while (place && !adds) {
      const next = place.nextElementSibling;
      came.delete(place.id);
      place.remove();
      place = next;
    }
    if (grown && atEnd) here.scrollTop = here.scrollHeight;
  }

  function renew(html) {
    const fresh = new DOMParser().parseFromString(html, "text/html");
    for (const part of fresh.querySelectorAll("[data-live]")) {
      const here = document.getElementById(part.id);
      if (here && here !== part) match(here, part);
      else remember(part);
    }
  }

  async function ask(address, options) {
    try {
      const answer = await fetch(address, { headers: { accept: "application/json" }, cache: "no-store", ...options });
      const told = await answer.json();
      news.textContent = "";
      return told;
    } catch {
      if (news.textContent !== form.dataset.silent) news.textContent = form.dataset.silent;
      return null;
    }
  }

  async function look() {
    const told = await ask(`/state?since=${version}${language()}`);
    if (!told) return;
    if (told.main) renew(told.main);
    version = told.version;
  }

  async function press(event) {
    event.preventDefault();
    if (busy || !event.submitter) return;
    busy = true;
    const button = event.submitter;
    const fields = new URLSearchParams(new FormData(form));
    if (button.name) fields.append(button.name, button.value);
    const before = new Map([...boxes()].map(([number, box]) => [number, box.value]));
    const told = await ask(button.formAction, { method: "POST", body: fields });
    if (told) {
      for (const place of form.querySelectorAll(".wrong")) place.textContent = told.wrong[place.dataset.of] ?? "";
      for (const [number, box] of boxes()) {
        if (number in told.drafts && box.value === before.get(number)) box.value = told.drafts[number];
      }
      await look();
    }
    busy = false;
  }

  document.documentElement.classList.add("live");
  for (const part of document.querySelectorAll("[data-live]")) {
    remember(part);
    part.scrollTop = part.scrollHeight;
  }
  form.addEventListener("submit", press);
  (async () => {
    for (;;) {
      await new Promise((wake) => setTimeout(wake, EVERY));
      if (!document.hidden && !busy) await look();
    }
  })();
})();
