// Progress: hypervolume and the best value so far, over evaluations, items or wall time.
const past = data.history;

const spentTitles = {
  evaluations: "full evaluations",
  items: "items answered",
  seconds: "wall time",
};

function spentLabel(value, all) {
  if (state.spent !== "seconds")
    return value >= 10000
      ? `${tickLabel(
          value / 1000,
          all.map((v) => v / 1000),
        )}k`
      : count(value);
  return value === 0 ? "0" : duration(value);
}

/** Values so far of one column: the running best, in the order of scoring. */
function bestSoFar(column) {
  let best = NaN;
  return past.candidates.map((id) => {
    const value = valueOf("search", study.rowOf.get(id), column);
    if (known(value) && (Number.isNaN(best) || better(column, value, best))) best = value;
    return best;
  });
}

/** A step line with level lines beside it; `dots` are single evaluations. */
function stepChart(host, width, title, values, levels, dots) {
  const height = 300;
  const labelWidth = Math.max(0, ...levels.map((level) => textWidth(level.name, 11)));
  const right = levels.length ? Math.min(width * 0.36, labelWidth + 14) : 14;
  const box = { left: 46, right: width - right, top: 26, bottom: height - 46 };
  const at = past[state.spent];
  const x = scale(0, at[at.length - 1] || 1, box.left, box.right);
  const inner = dots.slice().sort((a, b) => a.value - b.value);
  const cut = inner.slice(Math.floor(inner.length * 0.02), Math.ceil(inner.length * 0.98));
  const [low, high] = extent(
    [...values, ...levels.map((l) => l.value), ...cut.map((d) => d.value)],
    0.06,
  );
  const y = scale(low, high, box.bottom, box.top);
  const root = s("svg", {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": `${title} over ${spentTitles[state.spent]}, from ${show(values[0])} to ${show(values[values.length - 1])}; the values are in the table below`,
  });
  root.append(axes(x, y, box, { x: spentTitles[state.spent], y: title, xLabel: spentLabel }));
  const cloud = s("g", { class: "cloud" });
  for (const dot of dots) {
    if (dot.value < low || dot.value > high) continue;
    cloud.append(s("circle", { class: "dot", cx: x(at[dot.step]), cy: y(dot.value), r: 2.5 }));
  }
  root.append(cloud, levelLines(levels, y, box));
  let path = "";
  values.forEach((value, i) => {
    if (!known(value)) return;
    path += path
      ? `H${x(at[i]).toFixed(1)}V${y(value).toFixed(1)}`
      : `M${x(at[i]).toFixed(1)},${y(value).toFixed(1)}`;
  });
  if (path) root.append(s("path", { class: "so-far", d: `${path}H${box.right}` }));
  const cross = s("g", { class: "cross", "aria-hidden": "true" });
  root.append(cross);
  root.addEventListener("pointermove", (event) => {
    const place = x.back(event.clientX - root.getBoundingClientRect().left);
    const i = Math.max(
      0,
      at.findLastIndex((value) => value <= place),
    );
    cross.replaceChildren(s("line", { x1: x(at[i]), x2: x(at[i]), y1: box.top, y2: box.bottom }));
    showTip(
      [
        `#${past.candidates[i]}`,
        `${title} ${show(values[i])} so far`,
        `${plural(past.evaluations[i], "evaluation")}, ${plural(past.items[i], "item")}, ${duration(past.seconds[i])}`,
      ],
      event.clientX,
      event.clientY,
    );
  });
  root.addEventListener("pointerleave", () => {
    cross.replaceChildren();
    hideTip();
  });
  root.addEventListener("click", (event) => {
    const place = x.back(event.clientX - root.getBoundingClientRect().left);
    selectRow(
      study.rowOf.get(
        past.candidates[
          Math.max(
            0,
            at.findLastIndex((value) => value <= place),
          )
        ],
      ),
    );
  });
  host.replaceChildren(root);
}

/** Dashed lines with their names at the right, moved apart where they would overlap. */
function levelLines(levels, y, box) {
  const group = s("g", { class: "levels" });
  const placed = levels
    .map((level) => ({ ...level, py: y(level.value) }))
    .sort((a, b) => a.py - b.py);
  let last = -Infinity;
  for (const level of placed) {
    level.at = Math.max(level.py, last + 14);
    last = level.at;
  }
  const over = last - (box.bottom + 4);
  if (over > 0)
    placed.reduceRight((below, level) => {
      level.at = Math.min(level.at, below - 14);
      return level.at;
    }, box.bottom + 18);
  for (const level of placed) {
    group.append(
      s("line", { class: "level", x1: box.left, x2: box.right, y1: level.py, y2: level.py }),
    );
    group.append(s("text", { class: "level", x: box.right + 8, y: level.at + 4 }, level.name));
  }
  return group;
}

function drawProgress() {
  const charts = [...byId("progress-charts").children];
  const volumeLevels =
    past.static === null ? [] : [{ name: "reference points", value: past.static }];
  stepChart(charts[0], charts[0].clientWidth, "hypervolume", past.hypervolume, volumeLevels, []);
  const column = state.progressOf;
  const levels = references
    .filter((row) => !experts.has(nameOf(row)) || row === bestReference(column, experts))
    .map((row) => ({ name: labelOf(row), value: valueOf("search", row, column) }))
    .filter((level) => known(level.value));
  const dots = past.candidates
    .map((id, step) => ({ step, value: valueOf("search", study.rowOf.get(id), column) }))
    .filter((dot) => known(dot.value));
  stepChart(
    charts[1],
    charts[1].clientWidth,
    `best ${columns[column].label}`,
    bestSoFar(column),
    levels,
    dots,
  );
}

function progressTable() {
  const shown = data.optimise.names.map(columnOf);
  const best = shown.map(bestSoFar);
  const every = Math.max(1, Math.ceil(past.candidates.length / 200));
  const rows = past.candidates
    .map((id, i) => [
      `#${id}`,
      count(past.evaluations[i]),
      count(past.items[i]),
      duration(past.seconds[i]),
      show(past.hypervolume[i]),
      ...best.map((values) => show(values[i])),
    ])
    .filter((_, i) => i % every === 0 || i === past.candidates.length - 1);
  byId("progress-table").replaceChildren(
    table(
      [
        "candidate",
        "evaluations",
        "items",
        "time",
        "hypervolume",
        ...shown.map((c) => `best ${columns[c].label}`),
      ],
      rows,
    ),
  );
}

function startProgress() {
  const { names, reference } = data.optimise;
  const origin = names
    .map((name, i) => `${columns[columnOf(name)].label} ${show(reference[i])}`)
    .join(", ");
  if (!past.candidates.length) {
    byId("progress-note").textContent = "No candidate has been scored yet.";
    return;
  }
  byId("progress-note").textContent =
    `Search split. The hypervolume is what the candidates dominate, measured from ${origin}; ` +
    "the dashed line is what the reference points dominate by themselves. Wall time is that of the driver, reference points included.";
  byId("progress-charts").append(h("div", { class: "chart" }), h("div", { class: "chart" }));
  const draw = drawn(byId("progress-charts"), drawProgress);
  byId("progress-controls").append(
    segments(
      "Over",
      [
        ["evaluations", "evaluations"],
        ["items", "items"],
        ["seconds", "wall time"],
      ],
      state.spent,
      (value) => {
        state.spent = value;
        draw();
      },
    ),
    select(
      "best",
      columns.map((c, i) => [i, c.label]),
      state.progressOf,
      (value) => {
        state.progressOf = Number(value);
        draw();
      },
    ),
  );
  progressTable();
}
