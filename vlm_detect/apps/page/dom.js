// Small helpers for the document.

export const byId = (id) => document.getElementById(id);

export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

export function showError(message) {
  const place = byId("error");
  place.textContent = message;
  place.hidden = !message;
}

export function readAsDataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name}: the browser cannot read it.`));
    reader.readAsDataURL(file);
  });
}
