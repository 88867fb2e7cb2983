// Many images: sent a few at a time, shown in a table that sorts, saved as CSV.

import { postJson } from "./api.js";
import { byId, element, readAsDataUrl, showError } from "./dom.js";

const AT_A_TIME = 8;
const BYTES_AT_A_TIME = 16e6; // before base64; a larger file goes alone and may be refused by the server

let rows = [];
let abort = new AbortController(); // of everything that is asked before the table is cleared
let sorting = { column: null, ascending: true };

export function startBatch(modelOf) {
  byId("batch-csv").addEventListener("click", saveCsv);
  byId("batch-clear").addEventListener("click", clear);
  for (const button of document.querySelectorAll("#batch-table th button")) {
    button.addEventListener("click", () => sortBy(button.dataset.column));
  }
  return async (files) => {
    showError("");
    const fresh = files.map((file) => ({ file, name: file.name || "pasted image", label: "", p_fake: null, notes: "waiting" }));
    rows.push(...fresh);
    show();
    const { signal } = abort;
    for (const group of groups(fresh)) {
      await judge(group, modelOf(), signal);
      if (signal.aborted) return;
      show();
    }
  };
}

function* groups(fresh) {
  let group = [];
  let bytes = 0;
  for (const row of fresh) {
    if (group.length && (group.length === AT_A_TIME || bytes + row.file.size > BYTES_AT_A_TIME)) {
      yield group;
      group = [];
      bytes = 0;
    }
    group.push(row);
    bytes += row.file.size;
  }
  if (group.length) yield group;
}

// What is refused together is asked again one by one: one file that cannot be read, or more than this server takes.
async function judge(group, model, signal) {
  try {
    const images = await Promise.all(group.map((row) => readAsDataUrl(row.file)));
    const { verdicts } = await postJson("/v1/verdict", { images, model }, signal);
    verdicts.forEach((verdict, i) => Object.assign(group[i], summary(verdict)));
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === 429) {
      await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfter));
      if (!signal.aborted) await judge(group, model, signal);
    } else if (group.length > 1) {
      for (const row of group) await judge([row], model, signal);
    } else {
      Object.assign(group[0], { label: "unreadable", notes: error.message });
    }
  }
}

function summary(verdict) {
  if (verdict.error) return { label: "unreadable", notes: verdict.error.message };
  const notes = verdict.contradictions.length ? ["contradicts itself"] : [];
  if (verdict.why_unsure) notes.push(verdict.why_unsure);
  if (!verdict.reliable) notes.push("the calibration is not reliable");
  const claims = new Set(verdict.provenance.map((fact) => fact.claim).filter(Boolean));
  if (claims.size) notes.push(`the file claims: ${[...claims].join(", ")}`);
  return { label: verdict.label, p_fake: verdict.p_fake, calibrated: verdict.calibrated, model: verdict.model, caveat: verdict.caveat, notes: notes.join("; ") };
}

function sortBy(column) {
  sorting = { column, ascending: sorting.column === column ? !sorting.ascending : true };
  for (const button of document.querySelectorAll("#batch-table th button")) {
    const order = button.dataset.column !== column ? "none" : sorting.ascending ? "ascending" : "descending";
    button.parentElement.setAttribute("aria-sort", order);
  }
  show();
}

function ordered() {
  const { column, ascending } = sorting;
  if (!column) return rows;
  const sign = ascending ? 1 : -1;
  const missing = (row) => row[column] === null || row[column] === "";
  return [...rows].sort((a, b) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b); // last, whichever way
    const order = typeof a[column] === "number" ? a[column] - b[column] : a[column].localeCompare(b[column]);
    return sign * order;
  });
}

function show() {
  const body = byId("batch-table").tBodies[0];
  body.replaceChildren(...ordered().map(line));
  const done = rows.filter((row) => row.label).length;
  const count = (label) => rows.filter((row) => row.label === label).length;
  const counts = ["generated", "unsure", "real", "unreadable"].map((label) => `${count(label)} ${label}`).join(", ");
  const caveats = [...new Set(rows.map((row) => row.caveat).filter(Boolean))].map((caveat) => ` These labels mean little: ${caveat}.`);
  byId("batch-status").textContent = rows.length ? [`${done} of ${rows.length} images: ${counts}`, ...caveats].join(".") : "";
  for (const name of ["batch-table", "batch-csv", "batch-clear"]) byId(name).hidden = !rows.length;
}

function line(row) {
  row.thumbnail ??= URL.createObjectURL(row.file);
  const made = element("tr");
  const name = element("td");
  const image = Object.assign(element("img"), { src: row.thumbnail, alt: "" });
  image.addEventListener("error", () => image.remove());
  name.append(image, row.name);
  const label = element("td");
  label.append(row.caveat ? row.label : element("b", row.label, row.label));
  made.append(name, label, element("td", "", row.p_fake === null ? "" : row.p_fake.toFixed(3)), element("td", "", row.notes));
  return made;
}

function saveCsv() {
  // A leading apostrophe keeps a spreadsheet from running a file name as a formula.
  const cell = (value) => `"${String(value ?? "").replace(/^(?=[=+\-@\t\r])/, "'").replaceAll('"', '""')}"`;
  const columns = ["name", "label", "p_fake", "calibrated", "model", "notes"];
  const lines = [columns.join(","), ...ordered().map((row) => columns.map((column) => cell(row[column])).join(","))];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv" }));
  link.download = "verdicts.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

function clear() {
  abort.abort();
  abort = new AbortController();
  for (const row of rows) URL.revokeObjectURL(row.thumbnail);
  rows = [];
  show();
}
