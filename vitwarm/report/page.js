"use strict";
// Without this script the page is whole; it adds hiding arms, sorting tables and hover text.
for (const section of document.querySelectorAll("section.report")) {
  for (const button of section.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const show = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", String(show));
      for (const part of section.querySelectorAll(`svg [data-arm="${button.dataset.arm}"]`)) {
        part.classList.toggle("off", !show);
      }
    });
  }
}
const number = (text) => {
  const found = text.replaceAll(",", "").replace("−", "-").match(/-?[0-9.]+/);
  return found ? parseFloat(found[0]) : NaN;
};
for (const head of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = head.textContent;
  head.replaceChildren(button);
  button.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const column = head.cellIndex;
    const rows = [...body.rows].map((row) => [row.cells[column].textContent.trim(), row]);
    const numeric = rows.every(([text]) => text === "" || text === "–" || !isNaN(number(text)));
    rows.sort(([a], [b]) => {
      if (!numeric) return a.localeCompare(b);
      const [x, y] = [number(a), number(b)];
      return (isNaN(x) ? Infinity : x) - (isNaN(y) ? Infinity : y);
    });
    if (!up) rows.reverse();
    body.append(...rows.map(([, row]) => row));
  });
}
const tip = document.getElementById("tip");
document.addEventListener("pointermove", (event) => {
  const target = event.target.closest ? event.target.closest("[data-tip]") : null;
  tip.style.visibility = target ? "visible" : "hidden";
  if (!target) return;
  tip.textContent = target.dataset.tip;
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const y = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8);
  tip.style.transform = `translate(${Math.max(8, x)}px, ${Math.max(8, y)}px)`;
});
