// The page of `vlm-detect serve`: it talks to its own server alone. Text goes into the document as text, never as HTML.

import { ask, CancelledError, getModels, postJson, setKey, streamEvents } from "./api.js";
import { startBatch } from "./batch.js";
import { byId, element, readAsDataUrl, showError } from "./dom.js";
import { drawBoxes } from "./reasons.js";
import { renderVerdict } from "./verdict.js";

const tabs = [...document.querySelectorAll("[role=tab]")];
let models = [];

// Tabs, by mouse and by arrow keys

function select(tab, focus = true) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", chosen);
    other.tabIndex = chosen ? 0 : -1;
    byId(other.getAttribute("aria-controls")).hidden = !chosen;
  }
  showError("");
  if (focus) tab.focus();
}

for (const [i, tab] of tabs.entries()) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) select(tabs[(i + step + tabs.length) % tabs.length]);
  });
}

const activePanel = () => tabs.find((tab) => tab.getAttribute("aria-selected") === "true").getAttribute("aria-controls");

// Files: chosen, dropped or pasted, they go to the open tab

const takers = {};

function onFiles(panel, input, take) {
  takers[panel] = take;
  input.addEventListener("change", () => {
    if (input.files.length) take([...input.files]);
    input.value = ""; // so that the same file can be chosen again
  });
}

function give(files) {
  if (files.length) takers[activePanel()]([...files]);
}

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  give(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => give(event.clipboardData.files));

function preview(image, file) {
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  image.alt = file.name || "The pasted image";
  image.hidden = false;
}

// One image

const single = { url: null, abort: new AbortController(), map: null };

const chosenModel = (name) => byId(`${name}-model`).value || undefined;

async function judge(file) {
  single.abort.abort();
  const abort = (single.abort = new AbortController());
  single.map = null;
  showMap(false);
  showBoxes([], {});
  byId("talk").replaceChildren();
  byId("follow-up").hidden = true;
  byId("picture").hidden = true;
  showError("");
  const place = byId("verdict");
  place.replaceChildren(element("p", "hint", "Looking at it …"));
  try {
    const url = await readAsDataUrl(file);
    const { verdict, reasons } = await showVerdict(place, url, chosenModel("single"), abort.signal, () => {
      single.url = url;
      preview(byId("preview"), file);
      byId("picture-name").textContent = file.name || "Pasted image";
      byId("picture").hidden = false;
      byId("follow-up").hidden = false;
    });
    showBoxes(reasons, verdict);
  } catch (error) {
    if (abort.signal.aborted) return;
    place.replaceChildren(element("p", "hint", "No verdict: the image could not be judged."));
    showError(error.message);
  }
}

// The verdict, then its explanation as it is written, then its reasons.
async function showVerdict(place, url, model, signal, onVerdict = () => {}) {
  const verdict = await postJson("/v1/verdict", { image_url: url, model }, signal);
  onVerdict();
  const { explanation, conclude } = renderVerdict(place, verdict);
  let reasons = [];
  explanation.classList.add("writing");
  try {
    for await (const event of streamEvents("/v1/explain", { image_url: url, model, stream: true }, signal)) {
      if (event.chunk) explanation.textContent += event.chunk;
      if (event.completed) {
        conclude(event);
        reasons = event.reasons;
      }
    }
  } finally {
    explanation.classList.remove("writing");
  }
  return { verdict, reasons };
}

onFiles("single", byId("single-file"), ([file]) => {
  single.file = file;
  judge(file);
});

byId("single-model").addEventListener("change", () => single.file && judge(single.file));

function showMap(shown) {
  byId("layer").hidden = !shown;
  byId("legend").hidden = !shown;
  byId("cnn").hidden = !(shown && single.map?.cnn);
  const toggle = byId("map-toggle");
  toggle.setAttribute("aria-pressed", shown);
  toggle.textContent = shown ? "Hide the evidence" : "Show the evidence";
}

function showBoxes(reasons, size) {
  const any = reasons.some((reason) => reason.box) && drawBoxes(byId("boxes"), reasons, size);
  byId("boxes-toggle").hidden = !any;
  hideBoxes(!any);
}

function hideBoxes(hidden) {
  byId("boxes").toggleAttribute("hidden", hidden); // of an SVG it is no property
  byId("boxes-toggle").setAttribute("aria-pressed", !hidden);
  byId("boxes-toggle").textContent = hidden ? "Show the places" : "Hide the places";
}

byId("boxes-toggle").addEventListener("click", () => hideBoxes(!byId("boxes").hasAttribute("hidden")));

byId("map-toggle").addEventListener("click", async () => {
  if (!byId("layer").hidden) return showMap(false);
  const toggle = byId("map-toggle");
  try {
    if (!single.map) {
      toggle.textContent = "Looking for it …";
      toggle.disabled = true;
      const body = { image_url: single.url, model: chosenModel("single") };
      single.map = await postJson("/v1/evidence", body, single.abort.signal);
      byId("layer").src = single.map.layer;
      const strongest = Math.max(...single.map.values.flat().map(Math.abs));
      const odds = single.map.log_odds;
      byId("strongest").textContent = `The strongest colour is ${strongest.toFixed(3)} nats, of log-odds of ${odds.toFixed(3)}.`;
      if (single.map.cnn) {
        const { model, label, p_fake, picture } = single.map.cnn;
        byId("cnn-picture").src = picture;
        byId("cnn-verdict").textContent = `${label}, p_fake ${p_fake.toFixed(3)}`;
        byId("cnn-name").textContent = model;
      }
    }
    showMap(true);
  } catch (error) {
    showMap(false);
    if (!(error instanceof CancelledError)) showError(error.message);
  } finally {
    toggle.disabled = false;
  }
});

let answering = null;

byId("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = byId("question");
  const question = field.value.trim();
  if (!question || answering) return;
  field.value = "";
  const answer = element("p", "answer writing");
  byId("talk").append(element("p", "question", question), answer);
  answering = new AbortController();
  single.abort.signal.addEventListener("abort", () => answering?.abort());
  byId("stop").hidden = false;
  byId("ask-button").hidden = true;
  try {
    for await (const piece of ask(single.url, question, chosenModel("single"), answering.signal)) answer.textContent += piece;
  } catch (error) {
    if (error instanceof CancelledError) answer.textContent += " [stopped]";
    else showError(error.message);
  } finally {
    answer.classList.remove("writing");
    answering = null;
    byId("stop").hidden = true;
    byId("ask-button").hidden = false;
    field.focus();
  }
});

byId("stop").addEventListener("click", () => answering?.abort());

// Many images

onFiles("batch", byId("batch-file"), startBatch(() => chosenModel("batch")));

// Two models

const compare = { file: null, url: null, aborts: {} };

async function compareOne(side) {
  compare.aborts[side]?.abort();
  const abort = (compare.aborts[side] = new AbortController());
  const place = byId(`compare-${side}-verdict`);
  place.replaceChildren(element("p", "hint", "Looking at it …"));
  try {
    await showVerdict(place, compare.url, byId(`compare-${side}`).value, abort.signal);
  } catch (error) {
    if (abort.signal.aborted) return;
    place.replaceChildren(element("p", "hint", "No verdict."));
    showError(error.message);
  }
}

onFiles("compare", byId("compare-file"), async ([file]) => {
  if (models.length < 2) return;
  showError("");
  compare.file = file;
  try {
    const url = await readAsDataUrl(file);
    if (compare.file !== file) return; // another was chosen meanwhile
    compare.url = url;
  } catch (error) {
    return showError(error.message);
  }
  preview(byId("compare-preview"), file);
  await Promise.all([compareOne("first"), compareOne("second")]);
});

for (const side of ["first", "second"]) {
  byId(`compare-${side}`).addEventListener("change", () => compare.url && compareOne(side));
}

// Start

async function start() {
  try {
    models = await getModels();
  } catch (error) {
    byId("key-form").hidden = error.status !== 401;
    showError(error.status === 401 ? "This server asks for a key." : error.message);
    return;
  }
  byId("key-form").hidden = true;
  for (const name of ["single-model", "batch-model", "compare-first", "compare-second"]) {
    byId(name).replaceChildren(...models.map((model) => Object.assign(element("option", "", model), { value: model })));
  }
  byId("compare-second").selectedIndex = Math.min(1, models.length - 1);
  for (const choice of document.querySelectorAll(".model-choice")) choice.hidden = models.length < 2;
  byId("compare-both").hidden = models.length < 2;
  byId("compare-alone").hidden = models.length > 1;
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value);
  showError(""); // here and not in `start`, which may come to its end after another error was shown
  start();
});

start();
