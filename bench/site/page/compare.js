// The comparison: panes that share one centre and one zoom. A pixel of an image is shown as a pixel, never smoothed.

const compare = { set: 0, image: 0, a: 0, b: 0, side: [], mode: "wipe", x: 0, y: 0, zoom: null, wipe: 0.5, panes: [] };

const compared = () => data.sets[compare.set];
const shownPictures = () => pictures(compared(), compare.image);
const { cssScale, zoomTo, zoomBy, moveBy, reset, clamp, listen } = zoomer(compare, { size: shownPictures, pane: () => compare.panes[0], place });

function startCompare() {
  fill($("set"), data.sets.map((set, index) => option(index, set.display)), 0);
  $("set").closest("label").hidden = data.sets.length < 2;
  $("set").addEventListener("change", () => openSet(Number($("set").value)));
  $("image").addEventListener("change", () => openImage(Number($("image").value)));
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  for (const radio of document.getElementsByName("mode")) radio.addEventListener("change", () => setMode(radio.value));
  $("gain").addEventListener("change", drawCompare);
  $("in").addEventListener("click", () => zoomBy(2));
  $("out").addEventListener("click", () => zoomBy(0.5));
  $("fit").addEventListener("click", () => reset(null));
  $("native").addEventListener("click", () => zoomTo(1));
  $("region").addEventListener("click", toRegion);
  $("link").addEventListener("click", copyLink);
  document.addEventListener("keydown", onKey);
  new ResizeObserver(place).observe($("panes"));
  listen($("panes"));
}

/** Takes the state of the address; what it does not name is kept or chosen. */
function showCompare(values) {
  notice("");
  compare.set = setOf(values.get("set"));
  const set = compared();
  const all = layers(set);
  const find = (name, otherwise) => {
    const found = all.find((layer) => layer.name === name);
    if (name !== null && !found) notice(`This link names the method “${name}”, which is not here.`);
    return found ? found.place : otherwise;
  };
  const known = set.names.map((_, index) => index).filter((index) => set.images[index]);
  const named = set.names.indexOf(values.get("image"));
  if (values.get("image") !== null && named < 0) notice(`This link names the image “${values.get("image")}”, which is not here.`);
  compare.image = named >= 0 ? named : known[0] ?? 0;
  const has = shownPictures()?.has ?? (() => false);
  const visible = all.filter((layer) => has(layer.place)).map((layer) => layer.place);
  const methods = visible.filter((place) => place < set.methods.length);
  compare.a = find(values.get("a"), methods[0] ?? 0);
  compare.b = find(values.get("b"), methods[methods.length - 1] ?? 0);
  compare.side = values.get("side")?.split(",").map((name) => find(name, null)).filter((place) => place !== null) ?? visible;
  compare.mode = ["wipe", "side", "flip", "difference", ...(data.flip ? ["map"] : [])].includes(values.get("mode")) ? values.get("mode") : "wipe";
  const number = (key) => (Number.isFinite(parseFloat(values.get(key))) ? parseFloat(values.get(key)) : null);
  compare.zoom = number("zoom");
  compare.x = number("x") ?? (shownPictures()?.width ?? 0) / 2;
  compare.y = number("y") ?? (shownPictures()?.height ?? 0) / 2;
  compare.wipe = number("wipe") ?? 0.5;
  $("set").value = compare.set;
  fill($("image"), set.names.map((name, index) => option(index, name)), compare.image);
  drawCompare();
}

function openSet(index) {
  remember({ view: "compare", set: data.sets[index].name });
  showCompare(state());
}

function openImage(index) {
  const [before, after] = [shownPictures(), pictures(compared(), index)];
  compare.image = index;
  if (before && after && (before.width !== after.width || before.height !== after.height)) {
    Object.assign(compare, { zoom: null, x: after.width / 2, y: after.height / 2 });
  }
  $("image").value = index;
  drawCompare();
}

function step(by) {
  const set = compared();
  const known = set.names.map((_, index) => index).filter((index) => set.images[index]);
  if (!known.length) return;
  const at = known.indexOf(compare.image);
  openImage(known[(at + by + known.length) % known.length]);
}

function setMode(mode) {
  compare.mode = mode;
  drawCompare();
}

function choose(which, place) {
  compare[which] = place;
  drawCompare();
}

/** Draws everything anew: controls, panes, and the table of this image. */
function drawCompare() {
  for (const radio of document.getElementsByName("mode")) radio.checked = radio.value === compare.mode;
  $("gain").closest("label").hidden = compare.mode !== "difference";
  $("region").disabled = !region(compared(), compare.image, compare.a, compare.b);
  drawPanes();
  drawPicks();
  place();
}

function layer(at, kind) {
  const set = compared();
  const { title } = layers(set)[at];
  const made = element("div", { class: "layer" });
  const known = shownPictures();
  if (kind === "flip" && known?.flip(at) === null) {
    const why = at < set.methods.length ? "no map: the output or the ground truth is not here" : "maps are of methods, against the ground truth";
    made.append(element("p", { class: "absent" }, `${title}: ${why}`));
  } else if (known?.has(at)) {
    const address = source(set, compare.image, at, kind);
    const alt = `${set.names[compare.image]}: ${title}${kind === "flip" ? ", FLIP map against the ground truth" : ""}`;
    const image = element("img", { src: address, alt, draggable: "false" });
    image.style.width = `${known.width}px`; // the input, too, is shown at the size of the outputs
    image.style.height = `${known.height}px`;
    made.append(image);
  } else {
    made.append(element("p", { class: "absent" }, `${title}: this image is not here`));
  }
  return made;
}

function tag(at, side, prefix) {
  return element("span", { class: `tag ${side}` }, `${prefix}${layers(compared())[at].title}`);
}

function drawPanes() {
  const { a, b, mode } = compare;
  const panes = $("panes");
  const pane = (...children) => element("div", { class: "pane" }, ...children);
  if (!shownPictures()) {
    const text = "No picture of this image is on this machine, or --images left it out. The numbers beside are from the records.";
    compare.panes = [pane(element("p", { class: "absent" }, text))];
  } else if (mode === "side") {
    compare.panes = compare.side.map((at) => pane(layer(at), tag(at, "left alone", "")));
    if (!compare.panes.length) compare.panes = [pane(element("p", { class: "absent" }, "Choose methods in the table."))];
  } else if (mode === "flip") {
    compare.panes = [pane(...flipLayers(a), tag(a, "left alone", ""))];
  } else if (mode === "difference") {
    const both = element("div", { class: "layer difference" }, layer(a), layer(b));
    both.style.filter = `brightness(${$("gain").value})`;
    compare.panes = [pane(both, tag(a, "left", "|A − B|, A: "), tag(b, "right", "B: "))];
  } else if (mode === "map") {
    const mean = (at) => (shownPictures().flip(at) === null ? "" : `, mean FLIP ${decimals(shownPictures().flip(at), 3)}`);
    compare.panes = [...new Set([a, b])].map((at) => pane(layer(at, "flip"), element("span", { class: "tag left alone" }, `${layers(compared())[at].title} against the ground truth${mean(at)}`)));
  } else {
    const over = layer(b);
    over.classList.add("over");
    compare.panes = [pane(layer(a), over, tag(a, "left", "A: "), tag(b, "right", "B: "), handle())];
  }
  panes.replaceChildren(...compare.panes);
}

/** Lays the panes out in as many columns as show their images largest. */
function arrange() {
  const count = compare.panes.length;
  const columns = bestColumns(count);
  $("panes").style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  $("panes").style.gridTemplateRows = `repeat(${Math.ceil(count / columns)}, minmax(0, 1fr))`;
}

/** The number of columns in which `count` panes show their images largest. */
function bestColumns(count) {
  const { width = 1, height = 1 } = shownPictures() ?? {};
  const scaleIn = (columns) => Math.min($("panes").clientWidth / columns / width, $("panes").clientHeight / Math.ceil(count / columns) / height);
  return Array.from({ length: count }, (_, index) => index + 1).reduce((best, columns) => (scaleIn(columns) > scaleIn(best) ? columns : best), 1);
}

/** All pictures of the image over each other, of which one is visible: flipping loads nothing and does not flicker. */
function flipLayers(shown) {
  const key = `${compare.set} ${compare.image}`;
  if (compare.flip?.key !== key) {
    const here = layers(compared()).filter((known) => shownPictures().has(known.place));
    compare.flip = { key, layers: here.map((known) => [known.place, layer(known.place)]) };
  }
  for (const [at, made] of compare.flip.layers) made.style.visibility = at === shown ? "visible" : "hidden";
  const made = compare.flip.layers.map(([, known]) => known);
  return shownPictures().has(shown) ? made : [...made, layer(shown)];
}

function handle() {
  const made = element("div", { class: "handle", role: "slider", tabindex: "0", "aria-label": "Wipe between A and B", "aria-valuemin": "0", "aria-valuemax": "100" });
  const move = (share) => {
    compare.wipe = Math.min(1, Math.max(0, share));
    place();
  };
  made.addEventListener("pointerdown", (event) => {
    event.stopPropagation();
    made.setPointerCapture(event.pointerId);
  });
  made.addEventListener("pointermove", (event) => {
    if (!made.hasPointerCapture(event.pointerId)) return;
    const box = made.parentElement.getBoundingClientRect();
    move((event.clientX - box.left) / box.width);
  });
  made.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -0.02, ArrowRight: 0.02, Home: -1, End: 1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    move(compare.wipe + by);
  });
  return made;
}

/** Puts every image where the centre and the zoom say, and the state into the address. */
function place() {
  if ($("compare").hidden || !shownPictures()) return;
  arrange();
  const scaled = cssScale();
  clamp();
  for (const pane of compare.panes) {
    const left = pane.clientWidth / 2 - compare.x * scaled;
    const top = pane.clientHeight / 2 - compare.y * scaled;
    for (const found of pane.querySelectorAll(".layer")) found.classList.toggle("sharp", scaled * devicePixelRatio >= 0.99);
    for (const image of pane.querySelectorAll("img")) image.style.transform = `translate(${left}px, ${top}px) scale(${scaled})`;
    const over = pane.querySelector(".over");
    if (over) over.style.clipPath = `inset(0 0 0 ${compare.wipe * 100}%)`;
    const slider = pane.querySelector(".handle");
    if (slider) {
      slider.style.left = `${compare.wipe * 100}%`;
      slider.setAttribute("aria-valuenow", Math.round(compare.wipe * 100));
    }
  }
  $("zoom").textContent = zoomText(scaled * devicePixelRatio);
  clearTimeout(compare.timer); // browsers limit how often the address may change
  compare.timer = setTimeout(rememberCompare, 150);
}

function rememberCompare() {
  if ($("compare").hidden) return;
  const set = compared();
  const names = layers(set).map((known) => known.name);
  const moved = compare.zoom !== null;
  remember({
    view: "compare", set: set.name, image: set.names[compare.image], mode: compare.mode,
    a: names[compare.a], b: names[compare.b],
    side: compare.mode === "side" ? compare.side.map((at) => names[at]).join(",") : null,
    x: moved ? compare.x.toFixed(1) : null, y: moved ? compare.y.toFixed(1) : null,
    zoom: moved ? Number(compare.zoom.toFixed(3)) : null,
    wipe: compare.mode === "wipe" && compare.wipe !== 0.5 ? compare.wipe.toFixed(3) : null,
  });
}

function toRegion() {
  const found = region(compared(), compare.image, compare.a, compare.b);
  const first = compare.panes[0];
  if (!found || !first) return;
  compare.x = found.x + found.side / 2;
  compare.y = found.y + found.side / 2;
  zoomTo((Math.min(first.clientWidth, first.clientHeight) / (found.side * 1.5)) * devicePixelRatio);
}

function onKey(event) {
  const typing = event.target.closest?.("select, dialog, input:not([type=radio]):not([type=checkbox])");
  if ($("compare").hidden || !$("keys").checked || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
  const inPanes = event.target.closest?.("#panes");
  const actions = {
    "[": () => step(-1), "]": () => step(1), "+": () => zoomBy(2), "=": () => zoomBy(2), "-": () => zoomBy(0.5), "0": () => reset(null),
    o: () => zoomTo(1), d: toRegion, w: () => setMode("wipe"), s: () => setMode("side"), f: () => setMode("flip"), x: () => setMode("difference"),
    ...(data.flip && { m: () => setMode("map") }),
    ...(inPanes && {
      ArrowLeft: () => moveBy(-KEY_STEP, 0), ArrowRight: () => moveBy(KEY_STEP, 0),
      ArrowUp: () => moveBy(0, -KEY_STEP), ArrowDown: () => moveBy(0, KEY_STEP),
    }),
  };
  if (digit) {
    const at = Number(digit[1]) - 1;
    if (at < layers(compared()).length) choose(event.shiftKey ? "b" : "a", at);
  } else if (actions[event.key]) actions[event.key]();
  else return;
  event.preventDefault();
}

async function copyLink() {
  rememberCompare();
  try {
    await navigator.clipboard.writeText(location.href);
    $("link").textContent = "Copied";
  } catch {
    $("link").textContent = "In the address bar";
  }
  setTimeout(() => ($("link").textContent = "Copy link"), 1500);
}

/** The table beside the panes: which method is A, which is B, which are side by side, and their values here. */
function drawPicks() {
  const set = compared();
  const side = compare.mode === "side";
  const all = layers(set).filter(({ place: at }) => at < set.methods.length || shownPictures()?.has(at));
  const values = set.metrics.map((_, metric) => set.values[metric].map((of) => of[compare.image]));
  const ranked = set.metrics.map((metric, index) => ranks(values[index], metric.higher));
  const linked = all.some(({ place: at }) => original(set, compare.image, at));
  const file = (at, title) => {
    const href = original(set, compare.image, at);
    return href ? element("a", { href, target: "_blank", "aria-label": `Original of ${title}` }, "↗") : "";
  };
  const focused = document.activeElement?.dataset?.pick;
  const header = (text, label) => element("th", { scope: "col", "aria-label": label }, text);
  $("picks").tHead.replaceChildren(element("tr", {},
    header("", "Key"), ...(side ? [header("✓", "Shown")] : [header("A"), header("B")]),
    element("th", { scope: "col", class: "text" }, "Method"), linked ? header("File") : null,
    ...set.metrics.map((metric) => header(arrow(metric)))));
  const pick = (type, which, at, title, checked) => {
    const box = element("input", { type, name: `pick-${which}`, "aria-label": `${title} as ${which}`, "data-pick": `${which}-${at}` });
    box.checked = checked;
    box.disabled = !checked && !shownPictures()?.has(at);
    box.addEventListener("change", () => (type === "radio" ? choose(which, at) : toggle(at, box.checked)));
    return element("td", { class: "pick" }, box);
  };
  $("picks").tBodies[0].replaceChildren(...all.map(({ place: at, title }) =>
    element("tr", { class: !shownPictures()?.has(at) ? "gone" : at === compare.a ? "a" : at === compare.b ? "b" : null },
      element("td", {}, at < 9 ? element("kbd", {}, String(at + 1)) : ""),
      ...(side ? [pick("checkbox", "shown", at, title, compare.side.includes(at))]
        : [pick("radio", "a", at, title, at === compare.a), pick("radio", "b", at, title, at === compare.b)]),
      element("th", { scope: "row", class: "text" }, title), linked ? element("td", { class: "pick" }, file(at, title)) : null,
      ...set.metrics.map((metric, index) => {
        const value = at < set.methods.length ? values[index][at] : null;
        if (value === null) return element("td", {}, at < set.methods.length ? "—" : "");
        const rank = ranked[index][at];
        return element("td", { class: rank === 1 ? "bold" : null }, decimals(value, metric.decimals), element("sup", {}, String(rank)));
      }))));
  if (focused) document.querySelector(`[data-pick="${focused}"]`)?.focus();
  const known = shownPictures();
  $("image-note").textContent = `${compare.image + 1} of ${set.names.length}: ${set.names[compare.image]}` +
    (known ? `, ${known.width} × ${known.height}.` : ".") + (set.metrics.length ? " Small numbers: rank on this image." : "") +
    (data.exact ? "" : " Pictures are compressed; pixels are not exact.") +
    (compare.mode === "map" ? " FLIP map: dark where nobody would notice a difference to the ground truth, bright where it is seen." : "");
}

function toggle(at, on) {
  compare.side = layers(compared()).map(({ place: known }) => known).filter((known) => (known === at ? on : compare.side.includes(known)));
  drawCompare();
}
