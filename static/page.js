// Comfort only: everything here works without it.
"use strict";

function prepare(root) {
  for (const button of root.querySelectorAll("[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
      button.textContent = "Copied";
    });
  }
  for (const chart of root.querySelectorAll("[data-chart]")) {
    const drawing = chart.querySelector("svg");
    const readout = chart.querySelector("#readout");
    const bars = [...chart.querySelectorAll(".bar")];
    let current = bars.length;
    const show = (number) => {
      bars[current]?.classList.remove("current");
      current = Math.max(0, Math.min(bars.length - 1, number));
      bars[current].classList.add("current");
      readout.textContent = bars[current].dataset.say;
    };
    if (!bars.length) continue;
    // One stop for the tab key, arrows from bar to bar.
    drawing.setAttribute("tabindex", "0");
    readout.setAttribute("aria-live", "polite");
    drawing.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      show(current + step);
    });
    bars.forEach((bar, number) => bar.addEventListener("pointerenter", () => show(number)));
  }
}

document.addEventListener("DOMContentLoaded", () => prepare(document));
document.addEventListener("htmx:afterSettle", (event) => prepare(event.detail.elt));
// A page that says what was wrong is shown in place, too.
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.xhr.status === 400) {
    event.detail.shouldSwap = true;
    event.detail.isError = false;
  }
});
