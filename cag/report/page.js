"use strict";
// Without this script everything but the explorer is there.
(() => {
  const byId = (id) => document.getElementById(id);
  const NOTHING = "\u2013";

  // For each key of `steps`, `act` on its value.
  function onKeys(element, steps, act) {
    element.addEventListener("keydown", (event) => {
      if (!(event.key in steps)) return;
      event.preventDefault();
      act(steps[event.key]);
    });
  }

  // Pictures that enlarge -------------------------------------------------------------------

  const viewer = byId("viewer");
  let shown = [], current = 0;

  function show(index) {
    current = (index + shown.length) % shown.length;
    const picture = shown[current];
    Object.assign(byId("viewer-picture"), { src: picture.src, alt: picture.alt });
    byId("viewer-caption").textContent = picture.alt + " (" + (current + 1) + " of " + shown.length + ")";
  }

  function enlarge(picture) {
    const all = picture.closest("section").querySelectorAll(".pictures img");
    shown = [...all].filter((other) => other.offsetParent !== null);
    show(shown.indexOf(picture));
    viewer.showModal();
    byId("viewer-close").focus();
  }

  for (const picture of document.querySelectorAll(".pictures img")) {
    picture.tabIndex = 0;
    picture.setAttribute("role", "button");
    picture.addEventListener("click", () => enlarge(picture));
    onKeys(picture, { Enter: picture, " ": picture }, enlarge);
  }
  const arrows = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  onKeys(viewer, arrows, (step) => show(current + step));
  viewer.addEventListener("close", () => shown[current].focus());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  byId("viewer-previous").addEventListener("click", () => show(current - 1));
  byId("viewer-next").addEventListener("click", () => show(current + 1));
  byId("viewer-close").addEventListener("click", () => viewer.close());

  // One class of the feature space ------------------------------------------------------------

  for (const element of document.querySelectorAll(".scripted")) element.hidden = false;
  byId("feature-class")?.addEventListener("change", (event) => {
    for (const mark of document.querySelectorAll(".of-class")) {
      mark.classList.toggle("faded", !["", mark.dataset.class].includes(event.target.value));
    }
  });

  // The threshold explorer --------------------------------------------------------------------

  const RULES = ["anchor", "probability"], IGNORE = 255;

  const source = byId("explorer-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const kinds = data.kinds.map((kind) => kind.key), sliders = [...kinds, "probability"];
  const byRule = (make) => Object.fromEntries(RULES.map((rule) => [rule, make()]));
  const select = { round: byId("explorer-round"), image: byId("explorer-image"),
    colors: byId("explorer-colors"), scope: byId("explorer-scope") };
  let cursor = null;

  const round = () => data.rounds[select.round.value];
  const chosenSample = () => round().samples[select.image.value];
  const values = (key) => round().scales[key];

  async function unpack(sample) {
    const packed = Uint8Array.from(atob(sample.maps), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    const size = sample.height * sample.width;
    sample.fields.forEach((field, i) => { sample[field] = bytes.subarray(i * size, (i + 1) * size); });
    sample.maps = null;
  }

  // Each slider's index; -1 is off.
  function settings() {
    const chosen = { agreement: byId("agreement").checked };
    for (const key of sliders) chosen[key] = Number(byId(key).value);
    chosen.any = kinds.some((key) => chosen[key] >= 0);
    return chosen;
  }

  // A pixel's code is the number of a slider's values that it passes.
  function label(sample, chosen) {
    const size = sample.height * sample.width;
    const labels = byRule(() => new Uint8Array(size).fill(IGNORE));
    const tests = kinds.map((key) => [sample[key], chosen[key]]);
    for (let i = 0; i < size; i++) {
      if (chosen.any && tests.every(([codes, index]) => codes[i] > index)
          && (!chosen.agreement || sample.nearest[i] === sample.prediction[i])) {
        labels.anchor[i] = sample.nearest[i];
      }
      if (sample.probability[i] > chosen.probability) labels.probability[i] = sample.prediction[i];
    }
    return labels;
  }

  function count(samples, chosen) {
    const zeros = () => byRule(() => new Float64Array(data.names.length));
    const [total, kept, judged, right] = [zeros(), zeros(), zeros(), zeros()];
    for (const sample of samples) {
      const labels = label(sample, chosen);
      for (const rule of RULES) {
        const all = rule === "anchor" ? sample.nearest : sample.prediction;
        for (let i = 0; i < all.length; i++) {
          total[rule][all[i]]++;
          const value = labels[rule][i];
          if (value === IGNORE) continue;
          kept[rule][value]++;
          if (sample.truth[i] !== IGNORE) judged[rule][value]++;
          if (sample.truth[i] === value) right[rule][value]++;
        }
      }
    }
    return { total, kept, judged, right };
  }

  // For each row of the picture, the row of the map: with aligned corners, as the pipeline does.
  function enlargedIndex(old, size) {
    const gaps = Math.max(size - 1, 1);
    return Int32Array.from({ length: size }, (_, i) => Math.floor((2 * i * (old - 1) + gaps) / (2 * gaps)));
  }

  // A colour as a pixel's four bytes, on a little-endian machine.
  const packed = ([red, green, blue]) => (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
  const PALETTE = Uint32Array.from(data.palette, packed);
  const MARKED = packed([255, 255, 255]), UNKNOWN = packed([150, 150, 150]);
  const RIGHT = packed([0, 114, 178]), WRONG = packed([213, 94, 0]);

  // The colour of each pixel of a map; 0 is transparent.
  function colors(sample, labels) {
    const judge = select.colors.value === "errors";
    return Uint32Array.from(labels, (value, i) => {
      if (cursor && i === cursor.row * sample.width + cursor.column) return MARKED;
      if (value === IGNORE) return 0;
      if (!judge) return PALETTE[value];
      return sample.truth[i] === IGNORE ? UNKNOWN : sample.truth[i] === value ? RIGHT : WRONG;
    });
  }

  function draw(rule, sample, labels) {
    const canvas = byId("canvas-" + rule), photo = byId(sample.photo);
    const image = byId("view-" + rule).querySelector("img");
    const [width, height] = ["width", "height"].map((side) => Number(photo.getAttribute(side)));
    if (image.src !== photo.src) image.setAttribute("src", photo.src);
    for (const shown of [image, canvas]) Object.assign(shown, { width, height });
    canvas.style.opacity = byId("opacity").value / 100;
    const rows = enlargedIndex(sample.height, height), columns = enlargedIndex(sample.width, width);
    const drawn = colors(sample, labels), pixels = new ImageData(width, height);
    const target = new Uint32Array(pixels.data.buffer);
    for (let y = 0; y < height; y++) {
      const row = rows[y] * sample.width;
      for (let x = 0; x < width; x++) target[y * width + x] = drawn[row + columns[x]];
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  const share = (part, whole) => whole > 0 ? (100 * part / whole).toFixed(1) : NOTHING;
  const grouped = (number) => String(number).replace(/\B(?=(\d{3})+$)/g, "\u202f");
  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

  function cell(row, text, tag = "td") {
    const made = row.appendChild(document.createElement(tag));
    made.textContent = text;
    return made;
  }

  function makeRow(name, counts, reduce, judge) {
    const row = document.createElement("tr");
    cell(row, name, "th").scope = "row";
    for (const rule of RULES) {
      const kept = reduce(counts.kept[rule]);
      Object.assign(cell(row, grouped(kept)).dataset, { rule, pixels: kept });
      cell(row, share(kept, reduce(counts.total[rule]))).className = "strong";
      if (judge) cell(row, share(reduce(counts.right[rule]), reduce(counts.judged[rule])));
    }
    return row;
  }

  function fillTable(counts, judge) {
    const table = byId("counts"), columns = ["pixels", "kept %", ...(judge ? ["right %"] : [])];
    const head = document.createElement("tr"), groups = document.createElement("tr");
    groups.className = "groups";
    cell(groups, "");
    cell(head, "class", "th");
    for (const rule of RULES) {
      cell(groups, rule + " label", "th").colSpan = columns.length;
      for (const column of columns) cell(head, column, "th");
    }
    table.tHead.replaceChildren(groups, head);
    const rows = data.names.map((name, i) => {
      const row = makeRow(name, counts, (numbers) => numbers[i], judge);
      const spot = document.createElement("i");
      spot.className = "swatch";
      spot.style.background = "rgb(" + data.palette[i] + ")";
      row.firstChild.prepend(spot);
      return row;
    });
    table.tBodies[0].replaceChildren(...rows);
    const foot = makeRow("all classes", counts, sum, judge);
    foot.className = "total";
    table.tFoot.replaceChildren(foot);
  }

  const chosenValue = (key) => values(key)[byId(key).value] ?? null;

  function command(chosen) {
    if (!chosen.any) return "";
    const wanted = { agreement: chosen.agreement };
    for (const key of sliders) wanted[key] = chosenValue(key);
    const order = [...kinds, "agreement", "probability"];
    const changes = order.filter((key) => wanted[key] !== data.rules[key]);
    return "dvc exp run" + changes.map((key) => " -S ++pseudo_label." + key + "=" + wanted[key]).join("");
  }

  function range(key, code) {
    const known = values(key), kind = data.kinds.find((other) => other.key === key);
    if (known.length === 0) return null;
    // A larger code passes a stricter value, which is smaller where the kind is falling.
    if (kind && kind.falling) return code === 0 ? "above " + known[0] : "up to " + known[code - 1];
    if (code === 0) return (key === "probability" ? "at most " : "below ") + known[0];
    return code === known.length ? "from " + known[code - 1] : known[code - 1] + " to " + known[code];
  }

  function read() {
    if (!cursor) return;
    const sample = chosenSample(), labels = label(sample, settings());
    const i = cursor.row * sample.width + cursor.column;
    const nameIn = (map) => map[i] === IGNORE ? "none" : data.names[map[i]];
    const parts = ["row " + cursor.row + ", column " + cursor.column, "nearest anchor: " + nameIn(sample.nearest)];
    for (const key of kinds) {
      const text = range(key, sample[key][i]);
      if (text !== null) parts.push(key.replace("_", " ") + ": " + text);
    }
    parts.push("predicted: " + nameIn(sample.prediction));
    parts.push("probability: " + range("probability", sample.probability[i]));
    for (const rule of RULES) parts.push(rule + " label: " + nameIn(labels[rule]));
    if (sample.kind === "labelled") parts.push("truth: " + nameIn(sample.truth));
    byId("readout").textContent = parts.join("; ");
  }

  function update() {
    const chosen = settings(), sample = chosenSample(), labels = label(sample, chosen);
    const judge = sample.kind === "labelled";
    for (const key of sliders) {
      const text = String(chosenValue(key) ?? "off");
      byId(key).setAttribute("aria-valuetext", text);
      byId(key).closest("label").querySelector("output").textContent = text;
    }
    const opacity = byId("opacity");
    opacity.closest("label").querySelector("output").textContent = opacity.value + " %";
    select.colors.querySelector("[value=errors]").disabled = !judge;
    if (!judge) select.colors.value = "classes";
    for (const rule of RULES) {
      draw(rule, sample, labels[rule]);
      const kept = labels[rule].filter((value) => value !== IGNORE).length;
      byId("kept-" + rule).textContent = rule + " label: " + share(kept, labels[rule].length) + " % of the image";
    }
    const same = round().samples.filter((other) => other.kind === sample.kind);
    fillTable(count(select.scope.value === "all" ? same : [sample], chosen), judge);
    const text = command(chosen);
    byId("copy").disabled = !text;
    byId("command").textContent = !text ? "at least one kind of margin must be on"
      : text === "dvc exp run" ? text + "  (these are the values of params.yaml)" : text;
    byId("command").dataset.command = text;
    byId("copied").textContent = "";
    read();
  }

  function chooseRound(first) {
    const kept = first ? 0 : select.image.value;
    const name = (sample) => sample.name + (sample.kind === "labelled" ? " (with truth)" : "");
    select.image.replaceChildren(...round().samples.map((sample, i) => new Option(name(sample), i)));
    select.image.value = Math.min(kept, round().samples.length - 1);
    for (const key of sliders) {
      const slider = byId(key);
      if (first) slider.known = data.rules[key];
      slider.max = Math.max(values(key).length - 1, 0);
      slider.value = values(key).indexOf(slider.known);
      byId("slider-" + key).hidden = values(key).length === 0;
    }
  }

  function move(row, column) {
    const sample = chosenSample();
    const inside = (value, size) => Math.min(Math.max(value, 0), size - 1);
    cursor = { row: inside(row, sample.height), column: inside(column, sample.width) };
    update();
  }

  function leave() {
    cursor = null;
    update();
  }

  function watch(view) {
    const point = (event) => {
      const box = view.getBoundingClientRect(), sample = chosenSample();
      const place = (offset, size, count) => Math.round(offset / size * (count - 1));
      move(place(event.clientY - box.top, box.height, sample.height),
        place(event.clientX - box.left, box.width, sample.width));
    };
    for (const kind of ["pointermove", "pointerdown"]) view.addEventListener(kind, point);
    for (const kind of ["pointerleave", "blur"]) view.addEventListener(kind, leave);
    const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    onKeys(view, arrows, ([down, right]) => {
      const from = cursor || { row: 0, column: -right };
      move(from.row + down, from.column + right);
    });
  }

  async function copy() {
    const text = byId("command").dataset.command;
    try {
      await navigator.clipboard.writeText(text);
      byId("copied").textContent = "copied";
    } catch {
      getSelection().selectAllChildren(byId("command"));
      byId("copied").textContent = "selected; copy it with the keyboard";
    }
  }

  async function start() {
    await Promise.all(data.rounds.flatMap((part) => part.samples.map(unpack)));
    byId("agreement").checked = data.rules.agreement;
    select.round.value = data.rounds.length - 1;
    chooseRound(true);
    select.round.addEventListener("change", () => { chooseRound(false); leave(); });
    select.image.addEventListener("change", leave);
    for (const key of sliders) {
      byId(key).addEventListener("input", () => { byId(key).known = chosenValue(key); });
    }
    for (const key of [...sliders, "agreement", "opacity"]) byId(key).addEventListener("input", update);
    for (const choice of [select.colors, select.scope]) choice.addEventListener("change", update);
    for (const rule of RULES) watch(byId("view-" + rule));
    byId("copy").addEventListener("click", copy);
    byId("explorer").hidden = false;
    update();
  }

  start();
})();
