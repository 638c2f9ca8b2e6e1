// What all views share: the state in the address (`#view=compare&set=mini&…`), and what is known of sets and images.

const INPUT = "input:", TRUTH = "truth:"; // no method can be called so

/** The state in the address as a `URLSearchParams`. */
function state() {
  return new URLSearchParams(location.hash.slice(1));
}

/** An address of this page with these values; null and undefined are left out. */
function address(values) {
  const kept = Object.entries(values).filter(([, value]) => value !== null && value !== undefined);
  return "#" + new URLSearchParams(kept).toString();
}

/** Writes the state into the address without a step in the history. */
function remember(values) {
  history.replaceState(null, "", address(values));
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

/** The set that the address names, else the first; says so if there is no such set. */
function setOf(name) {
  const index = data.sets.findIndex((set) => set.name === name);
  if (name !== null && index < 0) notice(`This link names the test set “${name}”, which is not here.`);
  return Math.max(index, 0);
}

/** What can be shown of an image: all methods, then the input and the ground truth, as (place, name, title). */
function layers(set) {
  const count = set.methods.length;
  return [
    ...set.methods.map((method, place) => ({ place, name: method.name, title: method.display })),
    { place: count, name: INPUT, title: "Input" },
    { place: count + 1, name: TRUTH, title: "Ground truth" },
  ];
}

/** What a set knows of an image's pictures, or null. */
function pictures(set, image) {
  const known = set.images[image];
  if (!known) return null;
  const [width, height, tile, present, regions, flip] = known;
  return { width, height, tile, regions, has: (place) => present[place] === "1", flip: (place) => flip?.[place] ?? null };
}

/** The address of a picture or of its FLIP map (`kind` "flip"), or without `place` of the strip of thumbnails. */
function source(set, image, place, kind) {
  const index = data.sets.indexOf(set);
  const suffix = (place === undefined ? "" : `-${place}`) + (kind ? `-${kind}` : "");
  if (data.single) return $(`image-${index}-${image}${suffix}`).textContent;
  return `images/${encodeURIComponent(set.name)}/${image}${suffix}.webp`;
}

/** The address of the file that a picture was made of, or null where none is linked. */
function original(set, image, place) {
  const found = data.originals[data.sets.indexOf(set)][place];
  if (!found || !pictures(set, image)?.has(place)) return null;
  return found.base + (found.numbered ? `${image}-${place}` : encodeURIComponent(set.names[image])) + found.suffix;
}

/** The place of the pair (a, b), a < b, among all pairs of `count`. */
function pairIndex(a, b, count) {
  return (a * (2 * count - a - 1)) / 2 + (b - a - 1);
}

/** The paired difference a − b of a metric as {mean, low, high, n}, or null. */
function difference(set, metric, a, b) {
  if (a === b) return null;
  const found = set.pairs[metric][pairIndex(Math.min(a, b), Math.max(a, b), set.methods.length)];
  if (!found) return null;
  const [mean, low, high, n] = found;
  if (a < b) return { mean, low, high, n };
  return { mean: -mean, low: low === null ? null : -high, high: high === null ? null : -low, n };
}

/** The window of largest difference of two pictures as {x, y, side}, or null. The input has none. */
function region(set, image, a, b) {
  const known = pictures(set, image);
  const count = set.methods.length + 1;
  const [first, second] = [a, b].map((place) => (place === count ? count - 1 : place)).sort((p, q) => p - q);
  if (!known || a === b || [a, b].includes(set.methods.length)) return null;
  const block = known.regions[pairIndex(first, second, count)];
  if (block === undefined || block < 0) return null;
  const columns = Math.floor(known.width / data.block);
  return {
    x: (block % columns) * data.block,
    y: Math.floor(block / columns) * data.block,
    side: Math.min(data.window, known.width, known.height),
  };
}

const decimals = (value, digits) => value.toFixed(digits).replace("-", "−");
const signed = (value, digits) => (value < 0 ? "" : "+") + decimals(value, digits);
const arrow = (metric) => `${metric.display} ${metric.higher ? "↑" : "↓"}`;

/** Ranks of values, 1 for the best; equal values share a rank, null has none. */
function ranks(values, higher) {
  const known = values.filter((value) => value !== null).sort((p, q) => (higher ? q - p : p - q));
  return values.map((value) => (value === null ? null : known.indexOf(value) + 1));
}
