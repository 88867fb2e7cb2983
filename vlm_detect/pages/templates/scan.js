"use strict";
// Sorts and filters the rows of the table, and saves which verdicts are wrong as a CSV of path, label and sha256.
(() => {
  const table = document.querySelector("table.verdicts");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const find = document.getElementById("find");
  const shown = document.getElementById("shown");
  const save = document.getElementById("save");
  const pills = [...document.querySelectorAll("button[data-show]")];
  const order = ["generated", "unsure", "real", "unreadable"];
  document.documentElement.classList.add("js");

  for (const pill of pills) {
    pill.hidden = !rows.some((row) => row.dataset.label === pill.dataset.show);
    pill.addEventListener("click", () => {
      pill.setAttribute("aria-pressed", String(pill.getAttribute("aria-pressed") !== "true"));
      filter();
    });
  }
  find.addEventListener("input", filter);

  function filter() {
    const wanted = find.value.trim().toLowerCase();
    const labels = new Set(pills.filter((pill) => pill.getAttribute("aria-pressed") === "true").map((pill) => pill.dataset.show));
    let count = 0;
    for (const row of rows) {
      row.hidden = !labels.has(row.dataset.label) || !row.textContent.toLowerCase().includes(wanted);
      count += row.hidden ? 0 : 1;
    }
    shown.textContent = `${count} of ${rows.length} shown`;
  }

  // What a row is sorted by; an image without a probability stands last in either direction.
  const keys = {
    name: (row) => row.dataset.name,
    p: (row) => (row.dataset.p === "" ? null : Number(row.dataset.p)),
    label: (row) => order.indexOf(row.dataset.label),
  };

  for (const head of table.querySelectorAll("th[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const first = head.dataset.sort === "p" ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const direction = head.getAttribute("aria-sort") === first ? other : first;
      for (const one of table.querySelectorAll("th[aria-sort]")) one.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", direction);
      const key = keys[head.dataset.sort];
      const sign = direction === "ascending" ? 1 : -1;
      rows.sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y);
      });
      body.append(...rows);
    });
  }

  // As in the CSV files of a scan, an apostrophe keeps a spreadsheet from running a name as a formula.
  const cell = (text) => `"${(/^'*[=+\-@\t\r]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;

  table.addEventListener("change", () => {
    const marked = rows.filter((row) => row.querySelector("select")?.value);
    const lines = marked.map((row) => [row.dataset.name, row.querySelector("select").value, row.dataset.sha256].map(cell).join(","));
    save.textContent = marked.length ? `Save ${marked.length} mark${marked.length > 1 ? "s" : ""}` : "Save marks";
    save.setAttribute("aria-disabled", String(!marked.length));
    if (!marked.length) return save.removeAttribute("href");
    save.setAttribute("href", `data:text/csv;charset=utf-8,${encodeURIComponent(["path,label,sha256", ...lines, ""].join("\r\n"))}`);
  });
})();
