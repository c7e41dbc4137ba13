// A figure grows to the width of the window when it is clicked.
document.addEventListener("DOMContentLoaded", () => {
  for (const picture of document.querySelectorAll(".bd-article figure img")) {
    picture.addEventListener("click", () => {
      const dialog = document.createElement("dialog");
      dialog.className = "large";
      dialog.append(picture.cloneNode());
      dialog.addEventListener("click", () => dialog.close());
      dialog.addEventListener("close", () => dialog.remove());
      document.body.append(dialog);
      dialog.showModal();
    });
  }
});

// The table of claims: filter by verdict and sort by a column. Without this script the table is whole.
document.addEventListener("DOMContentLoaded", () => {
  const table = document.querySelector("table.claims");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const label = (row) => row.dataset.label;
  const chosen = new Set();

  const bar = document.createElement("div");
  bar.className = "claims-filter";
  bar.setAttribute("role", "group");
  bar.setAttribute("aria-label", "Show only claims with these verdicts");
  const count = document.createElement("p");
  count.setAttribute("aria-live", "polite");

  const show = () => {
    let shown = 0;
    for (const row of rows) {
      row.hidden = chosen.size > 0 && !chosen.has(label(row));
      shown += row.hidden ? 0 : 1;
    }
    for (const button of bar.children) {
      button.setAttribute("aria-pressed", String(chosen.size === 0 || chosen.has(button.dataset.label)));
    }
    count.textContent = `${shown} of ${rows.length} claims`;
  };

  for (const name of JSON.parse(table.dataset.labels)) {
    const badge = rows.find((row) => label(row) === name).querySelector(".verdict");
    const button = document.createElement("button");
    button.type = "button";
    button.className = badge.className;
    button.style.cssText = badge.style.cssText;
    button.dataset.label = name;
    button.textContent = `${name} ${rows.filter((row) => label(row) === name).length}`;
    button.addEventListener("click", () => {
      if (!chosen.delete(name)) chosen.add(name);
      show();
    });
    bar.append(button);
  }

  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sorter";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const turn = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", turn === 1 ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.key || row.cells[column].textContent.trim();
      body.append(...rows.sort((a, b) => turn * key(a).localeCompare(key(b), "en", { numeric: true })));
    });
  });
  // A link to a claim opens it.
  const open = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target || !target.matches("details.claim")) return;
    target.open = true;
    target.scrollIntoView();
  };

  const place = table.closest(".claims-scroll") || table;
  place.before(bar, count);
  show();
  addEventListener("hashchange", open);
  open(); // after the buttons, which move what lies below them
});
