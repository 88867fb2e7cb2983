// A verdict in the document: the word, the probability on its scale, what stands behind it, and room for the reasons.

import { element } from "./dom.js";
import { reasonList } from "./reasons.js";

const WORDS = { generated: "AI-generated", real: "Real", unsure: "Unsure" };

export function renderVerdict(place, verdict) {
  const card = element("div", verdict.label);
  // A label that says little is not set in large letters: the caveat stands in its place.
  const word = verdict.caveat
    ? element("p", "caveat", `No verdict: ${verdict.caveat}.`)
    : element("p", "verdict-word", WORDS[verdict.label]);
  const leaning = verdict.caveat ? `; it leans to ${verdict.label}` : "";
  const unreliable = verdict.reliable ? "" : ", which is not reliable";
  const calibrated = `calibrated on validation images${unreliable}`;
  const note = `${verdict.calibrated ? calibrated : "not calibrated: take it as a ranking"}${leaning}`;
  const facts = element("ul", "facts");
  const [low, high] = verdict.unsure_band;
  const band = high > low ? `, unsure between ${low.toFixed(2)} and ${high.toFixed(2)}` : "";
  for (const fact of [
    `p_fake ${verdict.p_fake.toFixed(3)}, ${note}`,
    `Operating point: generated above ${verdict.threshold.toFixed(2)}${band}`,
    ...witnesses(verdict),
    `Model ${verdict.model}, vlm-detect ${verdict.version}`,
  ]) {
    facts.append(element("li", "", fact));
  }
  const explanation = element("p", "explanation");
  const warnings = element("div");
  const warn = (sentences) =>
    warnings.replaceChildren(...sentences.map((sentence) => element("p", "warning", `Contradiction: ${sentence}.`)));
  warn(verdict.contradictions);
  // What was written gives way to its sentences, each with its status.
  const conclude = ({ reasons, contradictions }) => {
    explanation.replaceWith(reasons.length ? reasonList(reasons) : element("p", "explanation", "No reason is given."));
    warn(contradictions);
  };
  if (verdict.why_unsure) facts.append(element("li", "", `Unsure: ${verdict.why_unsure}`));
  const heading = element("h2", "", verdict.caveat ? "What the model says" : "Why");
  card.append(word, scale(verdict), facts, heading, explanation, warnings);
  for (const note of verdict.notes) card.append(element("p", "note", `The file: ${note}.`));
  if (verdict.provenance.length) card.append(...claims(verdict.provenance));
  place.replaceChildren(card);
  return { explanation, conclude };
}

function scale({ p_fake, threshold, unsure_band: [low, high] }) {
  const bar = element("div", "scale");
  bar.setAttribute("role", "meter");
  bar.setAttribute("aria-label", "Probability that the image is generated");
  bar.setAttribute("aria-valuemin", 0);
  bar.setAttribute("aria-valuemax", 1);
  bar.setAttribute("aria-valuenow", p_fake.toFixed(3));
  const part = (name, left, width) => {
    const made = element("span", name);
    made.style.left = `${100 * left}%`;
    if (width !== undefined) made.style.width = `${100 * width}%`;
    bar.append(made);
  };
  if (high > low) part("band", low, high - low);
  part("threshold", threshold);
  part("needle", p_fake);
  const ends = element("div", "ends");
  ends.append(element("span", "", "0 real"), element("span", "", "generated 1"));
  const whole = element("div");
  whole.append(bar, ends);
  return whole;
}

// What each witness says, where a verdict has several.
function witnesses({ witnesses, dissent }) {
  const named = Object.entries(witnesses);
  if (named.length < 2) return [];
  return named.map(([name, { log_odds, weight }]) => {
    const says = `${log_odds > 0 ? "generated" : "real"}, ${log_odds.toFixed(2)} nats, weight ${weight.toFixed(2)}`;
    return `Witness: ${name.replace("_", " ")} says ${says}${dissent.includes(name) ? ", against the verdict" : ""}`;
  });
}

function claims(provenance) {
  const list = element("ul", "facts");
  for (const fact of provenance) {
    const claim = fact.claim ? ` (it claims to be ${fact.claim})` : "";
    list.append(element("li", "", `${fact.source}: ${fact.text}${claim}`));
  }
  return [element("h2", "", "What the file says, which is no part of the verdict"), list];
}
