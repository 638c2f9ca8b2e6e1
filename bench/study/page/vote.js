// A rater's way through the questions. Every answer is kept at once, so that a closed page goes on where it was.

const FORMAT = "bench study votes", SCHEMA = 1;
const CALM = 300; // milliseconds in which a new question takes no answer: a key pressed twice is not two votes

const view = { x: 0, y: 0, zoom: 1, panes: [] };
const clock = { since: null, spent: 0 };
let ballot = null, stored = true, ready = false, size = null;

const { cssScale, zoomTo, zoomBy, moveBy, reset, clamp, listen } = zoomer(view, { size: () => size, pane: () => view.panes[0], place });
const trials = () => data.trials[ballot.rater - 1];
const current = () => ballot.answers.length;

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function read(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    stored = false;
    return null;
  }
}

function write(key, text) {
  try {
    localStorage.setItem(key, text);
  } catch {
    stored = false;
  }
}

const keyOf = (rater) => `bench-study-${data.study}-${rater}`;

/** The rater whom the address names (`#rater=7`), else the one who began here, else one drawn by lot. */
function chosenRater() {
  const count = data.trials.length;
  const named = Number(new URLSearchParams(location.hash.slice(1)).get("rater") ?? read(keyOf("last")));
  if (Number.isInteger(named) && named >= 1 && named <= count) return named;
  if (location.hash.includes("rater=")) notice(`This link names a rater whom the study does not have; it has 1 to ${count}. A number was drawn.`);
  return 1 + (crypto.getRandomValues(new Uint32Array(1))[0] % count);
}

/** The answers kept for this rater if they belong to his questions, else none. */
function openBallot() {
  const rater = chosenRater();
  write(keyOf("last"), String(rater));
  const fresh = { rater, token: [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join(""), answers: [], revised: 0 };
  try {
    const kept = JSON.parse(read(keyOf(rater)) ?? "null");
    const fits = kept?.answers.every((answer, index) => String(answer.shown) === String(data.trials[rater - 1][index].slice(1)));
    return fits ? kept : fresh;
  } catch {
    return fresh;
  }
}

function keep() {
  write(keyOf(ballot.rater), JSON.stringify(ballot));
  if (!stored) notice("This browser keeps nothing for this page: if you close it before the end, your answers are lost.");
}

function source(number) {
  return data.single ? $(`picture-${number}`).textContent : `images/${number}.webp`;
}

/** The pictures of a question, loaded: [number, label, what stands beside the choice]. */
async function load(trial) {
  const [image, ...shown] = trial;
  const [width, height, beside] = data.images[image];
  const labels = { hr: "Reference", lr: "Input" };
  const all = [
    ...Object.entries(beside).map(([side, number]) => ({ number, label: labels[side], reference: true })),
    ...shown.map((number, place) => ({ number, label: "ABCDEFGHI"[place], reference: false })),
  ];
  for (const one of all) {
    one.image = element("img", { alt: one.reference ? one.label : `Picture ${one.label}`, draggable: "false" });
    one.image.style.width = `${width}px`; // the input, too, is shown at the size of the others
    one.image.style.height = `${height}px`;
    one.image.src = source(one.number);
  }
  await Promise.all(all.map((one) => one.image.decode()));
  return { width, height, all };
}

let next = null; // the question after this one, which is loaded while this one is looked at

function loaded(index) {
  if (next?.index !== index) next = { index, found: load(trials()[index]) };
  const { found } = next;
  next = null;
  return found;
}

async function ask() {
  const index = current();
  $("progress").max = trials().length;
  $("progress").value = index;
  $("count").textContent = `${index} of ${trials().length}`;
  for (const name of ["intro", "vote", "done"]) $(name).hidden = name !== (index < trials().length ? "vote" : "done");
  if (index >= trials().length) return $("done").querySelector("h1").focus();
  enable(false);
  let found;
  try {
    found = await loaded(index);
  } catch {
    return notice("A picture of this question could not be loaded. Reload the page; your answers so far are kept.");
  }
  if (index !== current()) return;
  size = found;
  view.panes = found.all.map(({ image, label, reference }) =>
    element("div", { class: "pane" }, element("div", { class: "layer" }, image), element("span", { class: `tag left alone${reference ? " reference" : ""}` }, label)));
  $("panes").replaceChildren(...view.panes);
  reset(1);
  $("panes").focus({ preventScroll: true });
  Object.assign(clock, { since: document.hidden ? null : performance.now(), spent: 0 });
  setTimeout(() => index === current() && enable(true), CALM);
  if (index + 1 < trials().length) {
    next = { index: index + 1, found: load(trials()[index + 1]) };
    next.found.catch(() => {}); // said when it is asked for
  }
}

function enable(on) {
  ready = on;
  for (const button of document.querySelectorAll(".answer")) button.disabled = !on;
  $("back").disabled = !on || !current();
}

/** Takes an answer: a place from left to right, or null for "not sure". */
function answer(place) {
  const shown = trials()[current()]?.slice(1);
  if (!ready || (place !== null && place >= shown.length)) return;
  ballot.answers.push({
    trial: current(),
    shown,
    chosen: place === null ? null : shown[place],
    milliseconds: Math.round(clock.spent + (clock.since === null ? 0 : performance.now() - clock.since)),
    revised: ballot.revised,
    zoom: Math.round(cssScale() * devicePixelRatio * 100),
    ratio: Math.round(devicePixelRatio * 100),
  });
  ballot.revised = 0;
  keep();
  ask();
}

function back() {
  if (!ready || !current()) return;
  ballot.revised = ballot.answers.pop().revised + 1;
  keep();
  ask();
}

/** Puts every picture where the centre and the zoom say, on whole pixels of the screen. */
function place() {
  if ($("vote").hidden || !size) return;
  arrange();
  const scaled = cssScale();
  clamp();
  for (const pane of view.panes) {
    const box = pane.getBoundingClientRect();
    const whole = (position, origin) => Math.round((position + origin) * devicePixelRatio) / devicePixelRatio - origin;
    const left = whole(box.width / 2 - view.x * scaled, box.left);
    const top = whole(box.height / 2 - view.y * scaled, box.top);
    pane.firstChild.classList.toggle("sharp", scaled * devicePixelRatio >= 0.99);
    pane.querySelector("img").style.transform = `translate(${left}px, ${top}px) scale(${scaled})`;
  }
  $("zoom").textContent = Math.abs(scaled * devicePixelRatio - 1) < 0.001 ? "1:1" : zoomText(scaled * devicePixelRatio);
}

/** As many columns as show most of the pictures at once. */
function arrange() {
  const count = view.panes.length;
  const visible = (columns) => {
    const [width, height] = [$("panes").clientWidth / columns, $("panes").clientHeight / Math.ceil(count / columns)];
    const scaled = view.zoom === null ? Math.min(width / size.width, height / size.height) : view.zoom / devicePixelRatio;
    return Math.min(width, size.width * scaled) * Math.min(height, size.height * scaled);
  };
  const columns = Array.from({ length: count }, (_, index) => count - index).reduce((best, tried) => (visible(tried) > visible(best) * 1.02 ? tried : best), count);
  $("panes").style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  $("panes").style.gridTemplateRows = `repeat(${Math.ceil(count / columns)}, minmax(0, 1fr))`;
}

/** CRC-32, as in zip and PNG: it shows damage and careless edits, and proves nothing against a forger. */
function crc32(text) {
  let crc = ~0;
  for (const byte of new TextEncoder().encode(text)) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (0xedb88320 & -(crc & 1));
  }
  return (~crc >>> 0).toString(16).padStart(8, "0");
}

/** The file that the rater sends. `bench.study.votes` reads it and computes the same checksum. */
function votes() {
  const answers = ballot.answers;
  const lines = answers.map((one) => [one.trial, one.shown.join("-"), one.chosen ?? "none", one.milliseconds, one.revised, one.zoom, one.ratio].join(" "));
  const checksum = crc32([FORMAT, SCHEMA, data.study, ballot.rater, ballot.token, "", ...lines].join("\n"));
  return JSON.stringify({ format: FORMAT, schema: SCHEMA, study: data.study, rater: ballot.rater, token: ballot.token, simulated: "", answers, checksum }, null, 1) + "\n";
}

const fileName = () => `votes-${data.study}-${ballot.rater}-${ballot.token}.json`;

function save() {
  const link = element("a", { href: URL.createObjectURL(new Blob([votes()], { type: "application/json" })), download: fileName() });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Posts the file as the field `votes` of a form. Some servers take it and let no page read their answer. */
async function send() {
  $("send").disabled = true;
  $("sent").textContent = "Sending …";
  const form = new FormData();
  form.append("votes", new Blob([votes()], { type: "application/json" }), fileName());
  try {
    const answered = await fetch(data.post, { method: "POST", body: form, credentials: "omit", referrerPolicy: "no-referrer" });
    $("sent").textContent = answered.ok ? "Sent. Thank you." : `The server refused it (${answered.status}): please save the file and send that.`;
  } catch {
    $("sent").textContent = "It is not known whether this arrived: please save the file and send that as well.";
  }
  $("send").disabled = false;
}

function onKey(event) {
  if ($("vote").hidden || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
  const actions = {
    n: () => answer(null), b: back, "+": () => zoomBy(2), "=": () => zoomBy(2), "-": () => zoomBy(0.5), 0: () => reset(null), o: () => zoomTo(1),
    ArrowLeft: () => moveBy(-KEY_STEP, 0), ArrowRight: () => moveBy(KEY_STEP, 0), ArrowUp: () => moveBy(0, -KEY_STEP), ArrowDown: () => moveBy(0, KEY_STEP),
  };
  if (digit && !event.shiftKey) answer(Number(digit[1]) - 1);
  else if (Object.hasOwn(actions, event.key)) actions[event.key]();
  else return;
  event.preventDefault();
}

function describeScreen() {
  const ratio = Math.round(devicePixelRatio * 100) / 100;
  const small = innerWidth < 700 ? " This window is small: a computer is better suited." : "";
  const pinched = (window.visualViewport?.scale ?? 1) !== 1 ? " The page is enlarged by two fingers: please undo that." : "";
  $("screen").textContent = `Your screen has ${ratio} ${ratio === 1 ? "pixel" : "pixels"} for each pixel of this page, which is taken into account.${pinched}${small}`;
}

function start() {
  startTheme();
  ballot = openBallot();
  keep();
  $("rater").textContent = `${ballot.rater} of ${data.trials.length}`;
  $("total").textContent = trials().length;
  $("begin").textContent = current() ? `Go on with question ${current() + 1}` : "Begin";
  $("begin").addEventListener("click", ask);
  for (const button of document.querySelectorAll("[data-place]")) button.addEventListener("click", () => answer(Number(button.dataset.place)));
  $("unsure").addEventListener("click", () => answer(null));
  $("back").addEventListener("click", back);
  $("in").addEventListener("click", () => zoomBy(2));
  $("out").addEventListener("click", () => zoomBy(0.5));
  $("fit").addEventListener("click", () => reset(null));
  $("native").addEventListener("click", () => zoomTo(1));
  $("save").addEventListener("click", save);
  $("send")?.addEventListener("click", send);
  document.addEventListener("keydown", onKey);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && clock.since !== null) clock.spent += performance.now() - clock.since;
    clock.since = document.hidden ? null : performance.now();
  });
  addEventListener("hashchange", () => location.reload());
  addEventListener("storage", (event) => {
    if (event.key !== keyOf(ballot.rater) || event.newValue === JSON.stringify(ballot)) return;
    enable(false);
    notice("This study goes on in another tab or window. Reload this page to go on here.");
  });
  listen($("panes"));
  new ResizeObserver(() => {
    describeScreen();
    place();
  }).observe($("main"));
  describeScreen();
  if (current() >= trials().length) ask();
  else {
    $("intro").hidden = false;
    $("begin").focus();
  }
}

start();
