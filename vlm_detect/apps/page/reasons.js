// The reasons of an explanation: a numbered list with what measurement says of each, and their places over the image.

import { element } from "./dom.js";

const STATUSES = {
  confirmed: "Confirmed by measurement",
  contradicted: "Contradicted by measurement",
  unchecked: "Not checked",
};

export function reasonList(reasons) {
  const list = element("ol", "reasons");
  for (const reason of reasons) {
    const item = element("li", reason.status);
    const status = element("p", "status");
    status.append(element("b", "", STATUSES[reason.status]), measured(reason));
    item.append(element("p", "", reason.text), status);
    list.append(item);
  }
  return list;
}

function measured({ measure, value, percentile, supports }) {
  if (value === null || percentile === null) return "";
  const side = supports ? `; supports ${supports}` : "";
  return `: ${measure.replaceAll("_", " ")} ${Number(value.toPrecision(3))}, percentile ${Math.round(percentile)} of photos of this size${side}`;
}

// Rectangles in pixels of an image of `width` and `height`, numbered like the list; boxes of one place lie within each other.
export function drawBoxes(svg, reasons, { width, height }) {
  const unit = Math.min(width, height);
  const seen = {};
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  for (const [i, { box, status }] of reasons.entries()) {
    if (!box) continue;
    const [x0, y0, x1, y1] = box;
    const before = (seen[box] = (seen[box] ?? -1) + 1);
    const inset = unit * (0.006 + 0.018 * before);
    if (x1 - x0 < 3 * inset || y1 - y0 < 3 * inset) continue;
    const rectangle = shape("rect", status, { x: x0 + inset, y: y0 + inset, width: x1 - x0 - 2 * inset, height: y1 - y0 - 2 * inset });
    const size = unit * 0.075;
    const number = shape("text", status, { x: x0 + unit * (0.03 + 0.06 * before), y: y1 - unit * 0.03, "font-size": size });
    number.textContent = i + 1;
    svg.append(rectangle, number);
  }
  return svg.childElementCount > 0;
}

function shape(name, className, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  made.setAttribute("class", className);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
