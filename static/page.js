// Comfort alone: every page works without this file.
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);

  // ── Everywhere: copying, and menus that close ──────────────────────────────────────────────────────────────
  const showCopyButtons = (root) => {
    if (!navigator.clipboard) return; // needs HTTPS or localhost
    for (const button of root.querySelectorAll("[data-copy]")) button.hidden = false;
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) {
      await navigator.clipboard.writeText(byId(button.dataset.copy).textContent.trim());
      button.textContent = "Copied";
    }
    for (const menu of document.querySelectorAll("details[data-closes][open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
  });

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const open = document.activeElement.closest("details[data-closes][open], details.confirm[open]");
    if (open) {
      open.open = false;
      open.querySelector("summary").focus();
    }
    hideTip();
  });

  // ── The filters: a choice shows at once, and the address says only what differs from the default ───────────
  const DEFAULTS = { range: "7d", granularity: "auto", model: "", measure: "spend", group: "model", sort: "-spend" };

  // A list changes with every letter of a name that is typed: the form waits for the last one, or the swap would take the
  // list away in the middle of a word.
  const TYPING_PAUSE = 300; // ms
  let submission;

  document.addEventListener("change", (event) => {
    const form = event.target.closest("form[data-filters]");
    if (!form) return;
    clearTimeout(submission);
    const { name, value } = event.target;
    const waitsForDates = name === "start" || name === "end" || (name === "range" && value === "custom");
    if (waitsForDates) return;
    if (event.target.matches("select")) submission = setTimeout(() => form.requestSubmit(), TYPING_PAUSE);
    else form.requestSubmit();
  });

  document.addEventListener("htmx:configRequest", (event) => {
    if (!event.target.matches("form[data-filters]")) return;
    const sent = event.detail.parameters;
    if (sent.range !== "custom") {
      delete sent.start;
      delete sent.end;
    }
    for (const [name, value] of Object.entries(DEFAULTS)) if (sent[name] === value) delete sent[name];
  });

  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.target.id === "poll") {
      focused = document.activeElement.closest("[data-job]")?.id;
      if (event.detail.xhr.status >= 500) {
        event.detail.shouldSwap = false; // it asks again by itself
        return;
      }
    }
    // Signed out meanwhile, or an error page: go there, instead of taking a piece of it that it does not have.
    if (!/id="(figures|poll)"/.test(event.detail.serverResponse)) {
      event.detail.shouldSwap = false;
      window.location.assign(event.detail.pathInfo.finalRequestPath);
    }
  });
  document.addEventListener("htmx:sendError", (event) => {
    if (event.target.id === "poll") return; // it asks again by itself
    window.location.assign(event.detail.pathInfo.finalRequestPath);
  });
  document.addEventListener("htmx:afterSettle", () => {
    prepare(document);
    const figures = byId("figures");
    if (figures) byId("announcement").textContent = figures.dataset.says;
    const job = focused && document.activeElement === document.body && byId(focused);
    if (job) {
      job.tabIndex = -1; // its Cancel had the focus, and is gone
      job.focus();
    }
  });

  // ── Exports: a file that is ready or has failed is said; how far one is, is only shown ──────────────────────
  let focused;
  const states = new Map();

  const sayStates = () => {
    const news = [];
    for (const { id, dataset } of document.querySelectorAll("[data-job]")) {
      if (states.has(id) && states.get(id) !== dataset.job) news.push(dataset.job);
      states.set(id, dataset.job);
    }
    if (news.length) byId("announcement").textContent = news.join(". ");
  };

  // ── The chart: one stop for the tab key, arrows from bar to bar, values beside it ──────────────────────────
  const slotsOf = (chart) => [...chart.querySelectorAll(".slot")];

  const prepareChart = (chart) => {
    for (const slot of slotsOf(chart)) {
      const title = slot.querySelector("title");
      if (!title) continue;
      slot.setAttribute("aria-label", title.textContent);
      title.remove(); // the browser's own tooltip would cover this one
    }
  };

  const showTip = (slot) => {
    const chart = slot.closest("[data-chart]");
    const tip = chart.querySelector(".tip");
    const [when, ...lines] = slot.getAttribute("aria-label").split("\n");
    const heading = document.createElement("strong");
    heading.textContent = when;
    const list = lines.map((line) => {
      const at = line.lastIndexOf(": ");
      const row = document.createElement("span");
      const value = document.createElement("b");
      row.textContent = line.slice(0, at);
      value.textContent = line.slice(at + 2);
      row.append(value);
      return row;
    });
    tip.replaceChildren(heading, ...list);
    tip.hidden = false;
    const [outer, inner] = [chart.getBoundingClientRect(), slot.getBoundingClientRect()];
    const middle = inner.left - outer.left + inner.width / 2;
    const right = middle + 14;
    const fits = right + tip.offsetWidth <= outer.width;
    const left = fits ? right : Math.max(0, middle - 14 - tip.offsetWidth);
    tip.style.left = `${left}px`;
  };

  function hideTip() {
    for (const tip of document.querySelectorAll(".chart .tip")) tip.hidden = true;
  }

  const slotAt = (target) => (target instanceof Element ? target.closest(".chart .slot") : null);
  for (const kind of ["pointerover", "focusin"]) {
    document.addEventListener(kind, (event) => {
      const slot = slotAt(event.target);
      if (slot?.hasAttribute("aria-label")) showTip(slot);
      else if (kind === "pointerover" || !slot) hideTip();
    });
  }

  document.addEventListener("keydown", (event) => {
    const slot = slotAt(event.target);
    if (!slot) return;
    const slots = slotsOf(slot.closest("[data-chart]"));
    const at = slots.indexOf(slot);
    const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: slots.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const to = slots[Math.max(0, Math.min(slots.length - 1, next))];
    slot.setAttribute("tabindex", "-1");
    to.setAttribute("tabindex", "0");
    to.focus();
  });

  // A link to the table opens it.
  document.addEventListener("click", (event) => {
    if (event.target.closest('a[href="#series"]')) byId("series").open = true;
  });

  function prepare(root) {
    showCopyButtons(root);
    sayStates();
    for (const chart of root.querySelectorAll("[data-chart]")) prepareChart(chart);
  }

  prepare(document);
  (byId("shown-once") ?? byId("export-errors"))?.focus();
})();
