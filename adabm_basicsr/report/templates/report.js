"use strict";

// Tables: a click on a heading sorts by it, a second one the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    header.querySelector("button")?.addEventListener("click", () => sortBy(table, headers, header, column));
  });
}

function sortBy(table, headers, header, column) {
  const descending = header.getAttribute("aria-sort") === "ascending";
  headers.forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((a, b) => {
    const order = compare(valueOf(a, column), valueOf(b, column));
    return Number.isFinite(order) ? (descending ? -order : order) : order > 0 ? 1 : -1;
  });
  body.append(...rows);
}

function valueOf(row, column) {
  return JSON.parse(row.cells[column].dataset.value);
}

// What is missing comes last whichever way is sorted: infinite orders aren't turned round.
function compare(a, b) {
  if (a === b) return 0;
  if (a === null) return Infinity;
  if (b === null) return -Infinity;
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
}

const slider = document.getElementById("slider");
if (slider) {
  const [left, right] = [document.getElementById("left"), document.getElementById("right")];
  const over = slider.querySelector(".over");
  const line = slider.querySelector(".line");
  const rows = [...document.querySelectorAll(".choice")];
  let chosen = rows[0];

  const picture = (column) => chosen.querySelector(`[data-column="${column}"]`);
  // Crops of sets without ground truth have no such picture.
  const offer = (select, usual) => {
    for (const option of select.options) option.disabled = !picture(option.value);
    if (!picture(select.value)) select.value = usual;
  };
  const show = () => {
    offer(left, "full_precision");
    offer(right, own);
    over.src = picture(left.value).src;
    slider.querySelector(".under").src = picture(right.value).src;
    slider.querySelector(".chosen").textContent = chosen.dataset.label;
    rows.forEach((row) => row.classList.toggle("chosen", row === chosen));
  };
  const move = (share) => {
    over.style.clipPath = `inset(0 ${100 - share}% 0 0)`;
    line.style.left = `${share}%`;
  };
  const choose = (row) => {
    chosen = row;
    show();
  };
  const has = (select, column) => [...select.options].some((option) => option.value === column);
  left.value = "full_precision";
  const own = has(right, "adaptive") ? "adaptive" : "static";
  right.value = own;
  [left, right].forEach((select) => select.addEventListener("change", show));
  slider.querySelector("input").addEventListener("input", (event) => move(event.target.value));
  rows.forEach((row) => {
    row.addEventListener("click", () => choose(row));
    row.addEventListener("keydown", (event) => {
      if (event.key === "Enter") choose(row);
    });
  });
  show();
}

document.getElementById("opacity")?.addEventListener("input", (event) => {
  document.querySelector(".overlay").style.opacity = event.target.value / 100;
});
