// On a narrow page, style.css shows each row of a table with many columns as a block. Each
// cell then needs the title of its column. A table that does not fit otherwise has smaller
// text, and long words may break.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.docutils")) {
    const titles = [...table.querySelectorAll("thead th")].map((th) => th.textContent);
    if (titles.length < 3) continue;
    table.classList.add("as-blocks");
    for (const row of table.querySelectorAll("tbody tr")) {
      [...row.cells].forEach((cell, column) => {
        if (column > 0) cell.dataset.title = titles[column];
      });
    }
    const space = table.parentElement;
    if (space.scrollWidth > space.clientWidth) table.classList.add("too-wide");
  }
});
