// Two pictures over each other: the input, enlarged by the browser, up to a line, and the result beyond it.
// `element` is the viewer. At 1:1 a pixel of the result is a pixel of the screen.
const find = (selector) => element.querySelector(selector);
const state = { zoom: "fit", x: 0, y: 0 }; // x, y: the point of the result in the middle of the pane, in its pixels
const ratio = () => window.devicePixelRatio || 1;
const scale = () => {
  const pane = find(".tsd-pane"), after = find(".tsd-after");
  const fit = Math.min(pane.clientWidth / after.naturalWidth, pane.clientHeight / after.naturalHeight);
  return state.zoom === "fit" ? Math.min(fit, 1 / ratio()) : state.zoom / ratio();
};

function draw() {
  const pane = find(".tsd-pane"), after = find(".tsd-after"), before = find(".tsd-before");
  if (!after.naturalWidth) return;
  const factor = scale(), width = after.naturalWidth * factor, height = after.naturalHeight * factor;
  const corner = pane.getBoundingClientRect();
  const whole = (value, from) => Math.round((value + from) * ratio()) / ratio() - from; // none between two pixels
  const place = (middle, side, room) => side <= room ? (room - side) / 2
    : Math.min(0, Math.max(room - side, room / 2 - middle * factor));
  const left = whole(place(state.x, width, pane.clientWidth), corner.left);
  const top = whole(place(state.y, height, pane.clientHeight), corner.top);
  state.x = (pane.clientWidth / 2 - left) / factor;
  state.y = (pane.clientHeight / 2 - top) / factor;
  for (const image of [after, before]) Object.assign(image.style, {
    width: `${width}px`, height: `${height}px`, transform: `translate(${left}px, ${top}px)` });
  const line = pane.clientWidth * find("input").value / 100;
  before.style.clipPath = `inset(0 ${Math.max(0, left + width - line)}px 0 0)`;
  find(".tsd-pane i").style.left = `${line}px`;
  pane.classList.toggle("tsd-pixels", factor * ratio() >= 1);
  find("output").textContent = `${Math.round(100 * factor * ratio())} %`;
  for (const button of element.querySelectorAll("[data-zoom]"))
    button.setAttribute("aria-pressed", String(button.dataset.zoom === String(state.zoom)));
}

function zoomTo(zoom, x, y) { // keeps the point (x, y) of the pane in its place
  const pane = find(".tsd-pane"), before = scale();
  const dx = (x ?? pane.clientWidth / 2) - pane.clientWidth / 2, dy = (y ?? pane.clientHeight / 2) - pane.clientHeight / 2;
  state.zoom = zoom === "fit" ? zoom : Math.min(32, Math.max(1 / 16, zoom));
  state.x += dx / before - dx / scale();
  state.y += dy / before - dy / scale();
  draw();
}

function show(data) {
  find(".tsd-viewer").hidden = false;
  find(".tsd-before").src = data.before;
  find(".tsd-after").src = data.after;
  find(".tsd-before").alt = `${data.name}, the input, enlarged by the browser`;
  find(".tsd-after").alt = `${data.name}, the result`;
  Object.assign(state, { zoom: 1, x: 0, y: 0 });
}

element.addEventListener("load", (event) => { // of the pictures; it does not bubble
  if (!event.target.matches?.(".tsd-after")) return;
  Object.assign(state, { x: event.target.naturalWidth / 2, y: event.target.naturalHeight / 2 });
  draw();
}, true);
element.addEventListener("input", draw);
element.addEventListener("click", (event) => {
  const zoom = event.target.closest("[data-zoom]")?.dataset.zoom;
  if (zoom) zoomTo(zoom === "fit" ? zoom : Number(zoom));
});
document.addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-before]");
  if (!button) return;
  show(button.dataset);
  element.scrollIntoView({ block: "nearest" });
});

const pane = find(".tsd-pane"), held = new Map();
pane.addEventListener("wheel", (event) => {
  event.preventDefault();
  const box = pane.getBoundingClientRect();
  zoomTo(scale() * ratio() * 2 ** (-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
}, { passive: false });
pane.addEventListener("pointerdown", (event) => {
  pane.setPointerCapture(event.pointerId);
  held.set(event.pointerId, [event.clientX, event.clientY]);
});
pane.addEventListener("pointermove", (event) => {
  if (!held.has(event.pointerId)) return;
  const apart = () => { const [a, b] = [...held.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]); };
  const [x, y] = held.get(event.pointerId), before = held.size === 2 ? apart() : 0;
  held.set(event.pointerId, [event.clientX, event.clientY]);
  if (before) zoomTo(scale() * ratio() * apart() / before); // two fingers
  state.x -= (event.clientX - x) / scale() / held.size;
  state.y -= (event.clientY - y) / scale() / held.size;
  draw();
});
for (const end of ["pointerup", "pointercancel"]) pane.addEventListener(end, (event) => held.delete(event.pointerId));
pane.addEventListener("keydown", (event) => {
  const step = 64 / scale() / ratio();
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  const zooms = { "+": 2, "=": 2, "-": 1 / 2 };
  if (moves[event.key]) { state.x += moves[event.key][0]; state.y += moves[event.key][1]; draw(); }
  else if (zooms[event.key]) zoomTo(scale() * ratio() * zooms[event.key]);
  else if (event.key === "0") zoomTo(1);
  else return;
  event.preventDefault();
});
window.addEventListener("resize", draw);

// The first result of a batch is shown at once; later ones wait for their button.
let seen = "";
new MutationObserver(() => {
  const first = document.querySelector(".tsd-results [data-before]");
  if (first && first.dataset.before !== seen) { seen = first.dataset.before; show(first.dataset); }
}).observe(document.body, { childList: true, subtree: true });
