// Panes that share one centre and one zoom: drag to move, wheel and two fingers to zoom, in every pane alike.

const MOST_ZOOM = 32, LEAST_ZOOM = 0.05, KEY_STEP = 48;

/**
 * Moves and zooms `view`, which holds `x`, `y` (the point of the image in the middle of each pane) and `zoom`: pixels of
 * the screen for one of the image, null for what fits. `size()` is {width, height} of the images or null, `pane()` is one
 * of the panes, which are all of one size, and `place()` puts the images where the view says.
 */
function zoomer(view, { size, pane, place }) {
  /** CSS pixels for one pixel of an image. */
  function cssScale() {
    const known = size();
    const first = pane();
    if (!known || !first) return 1;
    const fitting = Math.min(first.clientWidth / known.width, first.clientHeight / known.height);
    return view.zoom === null ? fitting : view.zoom / devicePixelRatio;
  }

  /** Zooms, keeping what is under the point (in CSS pixels from the centre of a pane) where it is. */
  function zoomTo(zoom, dx = 0, dy = 0) {
    const before = cssScale();
    view.zoom = Math.min(MOST_ZOOM, Math.max(LEAST_ZOOM, zoom));
    const after = cssScale();
    view.x += dx / before - dx / after;
    view.y += dy / before - dy / after;
    place();
  }

  function zoomBy(factor, dx = 0, dy = 0) {
    zoomTo(cssScale() * devicePixelRatio * factor, dx, dy);
  }

  function moveBy(dx, dy) {
    const scaled = cssScale();
    if (view.zoom === null) view.zoom = scaled * devicePixelRatio;
    view.x += dx / scaled;
    view.y += dy / scaled;
    place();
  }

  /** Shows the middle of the image at a zoom, null for what fits. */
  function reset(zoom) {
    const known = size();
    if (!known) return;
    Object.assign(view, { zoom, x: known.width / 2, y: known.height / 2 });
    place();
  }

  /** Keeps the centre inside the image. */
  function clamp() {
    const known = size();
    view.x = Math.min(Math.max(view.x, 0), known.width);
    view.y = Math.min(Math.max(view.y, 0), known.height);
  }

  /** Listens to pointer and wheel in `panes`, the element around all panes. */
  function listen(panes) {
    const fingers = new Map();
    const fromCentre = (found, x, y) => {
      const box = found.getBoundingClientRect();
      return [x - box.left - box.width / 2, y - box.top - box.height / 2];
    };
    panes.addEventListener("wheel", (event) => {
      const found = event.target.closest(".pane");
      if (!found || !size()) return;
      event.preventDefault();
      const pixels = event.deltaY * (event.deltaMode === 1 ? 20 : 1);
      zoomBy(Math.exp(-pixels * 0.002), ...fromCentre(found, event.clientX, event.clientY));
    }, { passive: false });
    panes.addEventListener("pointerdown", (event) => {
      if (event.button || !event.target.closest(".pane")) return;
      fingers.set(event.pointerId, event);
      panes.setPointerCapture(event.pointerId);
    });
    panes.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before || !size()) return;
      fingers.set(event.pointerId, event);
      if (fingers.size === 1) return moveBy(before.clientX - event.clientX, before.clientY - event.clientY);
      const other = [...fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
      const apart = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY);
      const middle = [(event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2];
      moveBy((before.clientX - event.clientX) / 2, (before.clientY - event.clientY) / 2);
      zoomBy(apart(event) / Math.max(apart(before), 1), ...fromCentre(pane(), ...middle));
    });
    for (const kind of ["pointerup", "pointercancel"]) panes.addEventListener(kind, (event) => fingers.delete(event.pointerId));
  }

  return { cssScale, zoomTo, zoomBy, moveBy, reset, clamp, listen };
}

const zoomText = (zoom) => (zoom >= 10 ? `${Math.round(zoom)}×` : `${zoom.toFixed(2).replace(/\.?0+$/, "")}×`);
