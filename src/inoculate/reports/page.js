"use strict";
(function () {
  const COLUMNS = 3, NARROWEST = 230, AXIS = 62, GAP = 24;
  const figures = Array.from(document.querySelectorAll("[data-spec]"));

  // Vega would replace a chart's text alternative by "Vega visualization": it takes it from the description.
  const told = new Map(figures.map(function (place) { return [place, place.getAttribute("aria-label")]; }));

  // Panels stand side by side while there is room, and below each other on a phone.
  function draw(place) {
    const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
    const room = place.clientWidth - AXIS;
    const fit = Math.floor((room + GAP) / (NARROWEST + GAP));
    const panels = Number(place.dataset.panels), most = Math.max(1, Math.min(COLUMNS, panels, fit));
    const columns = Math.ceil(panels / Math.ceil(panels / most));
    spec.columns = columns;
    spec.description = told.get(place);
    spec.spec.width = Math.min(520, Math.floor((room - GAP * (columns - 1)) / columns));
    return window.vegaEmbed(place, spec, { actions: false, renderer: "svg", ast: true, tooltip: { theme: "custom" } });
  }

  const widths = new WeakMap();
  let waiting = 0;
  function redraw() {
    for (const place of figures) {
      if (widths.get(place) === place.clientWidth) continue;
      widths.set(place, place.clientWidth);
      draw(place).catch(function (error) {
        place.textContent = "This chart could not be drawn: " + error.message;
        console.error(error);
      });
    }
  }
  redraw();
  window.addEventListener("resize", function () {
    window.clearTimeout(waiting);
    waiting = window.setTimeout(redraw, 150);
  });
})();
