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
// Copies a table for a spreadsheet; saves a picture with its style and legend, or its numbers.
const tool = (label, place, act) => {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "tool";
  button.textContent = label;
  button.addEventListener("click", () => act(button));
  place.append(button);
};
const save = (text, type, figure, ending) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type}));
  link.download = `${figure.closest("section").id}-${figure.dataset.name}.${ending}`;
  link.click();
  URL.revokeObjectURL(link.href);
};
// Numbers as programs read them: no thousands separators, and the minus of a keyboard.
const plain = (text) => text.trim().replaceAll("−", "-").replace(/(\d),(?=\d{3}(?!\d))/g, "$1");
for (const table of document.querySelectorAll(".scroll table")) {
  tool("Copy", table.caption.firstElementChild, async (button) => {
    const rows = [...table.rows].map((row) => [...row.cells].map((c) => plain(c.textContent)).join("\t"));
    const area = document.createElement("textarea");
    area.value = rows.join("\n");
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    button.textContent = copied ? "Copied" : "Not copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
const addLegend = (picture, section) => {
  const {width, height} = picture.viewBox.baseVal;
  let [x, y] = [46, height + 14];
  for (const button of section.querySelectorAll(".legend button")) {
    const drawn = picture.querySelector(`[data-arm="${button.dataset.arm}"]`);
    if (!drawn || picture.querySelector("text.label")) continue;
    const room = 44 + 7 * button.textContent.length;
    if (x > 46 && x + room > width) [x, y] = [46, y + 20];
    const mark = button.querySelector("svg").cloneNode(true);
    const place = {x, y: y - 7, width: 28, height: 14};
    for (const [name, value] of Object.entries(place)) mark.setAttribute(name, value);
    const text = document.createElementNS("http://www.w3.org/2000/svg", "text");
    text.setAttribute("x", x + 32);
    text.setAttribute("y", y + 4);
    text.textContent = button.textContent;
    picture.append(mark, text);
    x += room;
  }
  picture.setAttribute("viewBox", `-8 -8 ${width + 16} ${y + 22}`);
};
for (const figure of document.querySelectorAll("figure[data-name]")) {
  const tools = document.createElement("div");
  tools.className = "tools";
  figure.append(tools);
  const {csv} = figure.dataset;
  if (csv !== undefined) tool("CSV", tools, () => save(csv, "text/csv", figure, "csv"));
  tool("SVG", tools, () => {
    const picture = figure.querySelector("svg").cloneNode(true);
    addLegend(picture, figure.closest("section"));
    const style = document.createElementNS("http://www.w3.org/2000/svg", "style");
    style.textContent = document.getElementById("picture").textContent;
    picture.prepend(style);
    save(new XMLSerializer().serializeToString(picture), "image/svg+xml", figure, "svg");
  });
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
