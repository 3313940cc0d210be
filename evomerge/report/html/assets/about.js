// The head of the page, what the study cost, and how to make it again.
function overview() {
  byId("title").textContent = data.name;
  const split = hasHeldOut ? "held_out" : "search";
  const on = hasHeldOut ? "held-out" : "search";
  const { label } = columns[first];
  const lead = byId("lead");
  const knee = data.candidates.knee === null ? null : study.rowOf.get(data.candidates.knee);
  const rival = bestReference(first);
  const parts = [
    `${plural(searched.length, "candidate")} of ${plural(data.grids.length ? data.genes.length : 0, "gene")} scored by ${data.lineage.search.algorithm}; ${frontRows.length} on the front. `,
  ];
  if (knee !== null) {
    const value = (row) =>
      `${show(valueOf(split, row, first))} ${showError(errorOf(split, row, first))}`;
    parts.push(
      "The knee, ",
      h("b", {}, labelOf(knee)),
      `, has ${label} `,
      h("b", {}, value(knee)),
      ` on ${on} items`,
    );
    if (rival !== null)
      parts.push(`; the best reference point, ${labelOf(rival)}, has `, h("b", {}, value(rival)));
    parts.push(". ");
  }
  if (!data.finished)
    parts.push("The run has not finished; this is what its ledger held when the report was made.");
  lead.replaceChildren(...parts);
  byId("tiles").replaceChildren(
    ...tiles(knee, split).map(([name, value, note]) =>
      h("div", {}, h("dt", {}, name), h("dd", {}, value), h("dd", { class: "small muted" }, note)),
    ),
  );
}

function tiles(knee, split) {
  const volume = past.hypervolume[past.hypervolume.length - 1];
  const failed = rows.filter((row) => data.candidates.status[row] === "failed").length;
  const seen = Object.entries(data.in_part).map(([status, number]) => `${number} ${status}`);
  const points = `${references.length} reference points`;
  const items = Object.values(past.stages).reduce((sum, stage) => sum + stage.items, 0);
  const shown =
    knee === null
      ? []
      : data.optimise.names.slice(0, 2).map((name) => {
          const column = columnOf(name);
          const best = bestReference(column);
          const gain =
            best === null ? NaN : valueOf(split, knee, column) - valueOf(split, best, column);
          return [
            `${columns[column].label} of the knee`,
            show(valueOf(split, knee, column)),
            known(gain)
              ? `${signed(gain)} against ${labelOf(best)}${columns[column].minimised ? ", less is better" : ""}`
              : "",
          ];
        });
  return [
    ...shown,
    [
      "hypervolume",
      show(volume),
      past.static === null ? "" : `reference points alone ${show(past.static)}`,
    ],
    ["scored", count(searched.length), [...seen, `${failed} failed`, points].join(", ")],
    ["items answered", count(items), "all splits, references included"],
    ["wall time", duration(past.wall), plural(past.sessions, "session")],
  ];
}

// --- cost -------------------------------------------------------------------------------------

const partTitles = {
  instantiate: "instantiate",
  prefill: "prefill",
  backward: "backward",
  decode: "decode",
  score: "rest of scoring",
};

function cost() {
  const stages = Object.entries(past.stages).filter(
    ([, stage]) => stage.evaluations || stage.parts,
  );
  const parts = [
    ...new Set(stages.flatMap(([, stage]) => Object.keys(stage.seconds))),
  ].sort((a, b) => Object.keys(partTitles).indexOf(a) - Object.keys(partTitles).indexOf(b));
  const total = Math.max(past.wall, past.busy) || 1;
  const pieces = stages.flatMap(([name, stage]) =>
    parts.map((part) => [
      `${partTitles[part] || part}, ${name}`,
      stage.seconds[part] || 0,
      part,
      name,
    ]),
  );
  if (past.idle !== null) pieces.push(["nothing evaluated", past.idle, "idle", ""]);
  byId("cost-chart").replaceChildren(costBar(pieces, total, parts));
  byId("cost-table").replaceChildren(
    table(
      [
        "",
        "evaluations",
        "items",
        "tokens",
        ...parts.map((part) => partTitles[part] || part),
        "an evaluation",
      ],
      stages.map(([name, stage]) => {
        const { seconds } = stage;
        const sum = Object.values(seconds).reduce((a, b) => a + b, 0);
        return [
          name,
          count(stage.evaluations),
          count(stage.items),
          count(stage.tokens),
          ...parts.map((part) => duration(seconds[part])),
          stage.parts ? "" : duration(sum / stage.evaluations),
        ];
      }),
    ),
  );
  byId("cost-note").textContent = costNote(parts);
  failures();
}

function costBar(pieces, total, parts) {
  const bar = h("div", {
    class: "cost-bar",
    role: "img",
    "aria-label": pieces.map(([name, seconds]) => `${name}: ${duration(seconds)}`).join(", "),
  });
  for (const [name, seconds, part, stage] of pieces) {
    if (!seconds) continue;
    const piece = h("i", {
      class: `part-${part === "idle" ? "idle" : parts.indexOf(part) % 5}`,
      title: `${name}: ${duration(seconds)}`,
    });
    piece.style.flexGrow = String(seconds / total);
    piece.dataset.stage = stage;
    if (seconds / total > 0.13) piece.append(h("span", {}, stage || "idle"));
    bar.append(piece);
  }
  const legend = h(
    "div",
    { class: "legend" },
    [...parts, ...(past.idle === null ? [] : ["idle"])].map((part) =>
      h(
        "span",
        {},
        h("i", { class: `swatch part-${part === "idle" ? "idle" : parts.indexOf(part) % 5}` }),
        part === "idle" ? "waiting: nothing evaluated" : partTitles[part] || part,
      ),
    ),
  );
  return h("div", {}, bar, legend);
}

function costNote(parts) {
  const text = [
    `Driver time ${duration(past.wall)}; workers were busy for ${duration(past.busy)} together.`,
  ];
  text.push(
    past.idle === null
      ? `On average ${(past.busy / past.wall).toFixed(1)} evaluations ran at a time; how long single workers waited is not recorded.`
      : "The rest is waiting: proposals of the search, the ledger, workers that start.",
  );
  if (!parts.includes("prefill"))
    text.push("Prefill and decode were not measured apart: they are within run and score.");
  if (past.lost)
    text.push(`${plural(past.lost, "worker")} died with a candidate, which was tried again.`);
  return text.join(" ");
}

function failures() {
  const reasons = Object.entries(data.candidates.reasons);
  if (!reasons.length) return;
  byId("failures").replaceChildren(
    h("h3", {}, plural(reasons.length, "failure")),
    h(
      "div",
      { class: "scroll" },
      table(
        ["candidate", "reason"],
        reasons.map(([id, reason]) => [labelOf(study.rowOf.get(Number(id))), reason]),
        { text: [0, 1] },
      ),
    ),
  );
}

// --- lineage ----------------------------------------------------------------------------------

function lineage() {
  const { sources, objectives, search, space, directions, place, experiment, versions } =
    data.lineage;
  const started = new Date(past.started * 1000).toISOString().slice(0, 16).replace("T", " ");
  const hashes = Object.entries(objectives).flatMap(([name, o]) =>
    Object.entries(o.sha256 || {}).map(([split, hash]) => [
      name,
      split.replace("_", "-"),
      h("code", {}, hash),
    ]),
  );
  const made = Object.entries(directions)
    .map(([name, d]) => (d === "expert" ? name : `${name}: ${d.method}`))
    .join(", ");
  byId("lineage").replaceChildren(
    h(
      "p",
      {},
      `Space ${space.name} (${space.method}), ${plural(data.genes.length, "gene")}; search ${search.algorithm}, seed ${search.seed}. ` +
        `Started ${started} UTC, ${plural(past.sessions, "session")}. ${made ? `Searched over: ${made}. ` : ""}` +
        "With the same sources, data, seed and one worker, the same candidates are proposed.",
    ),
    h("h3", {}, "Sources"),
    h(
      "div",
      { class: "scroll" },
      table(
        ["name", "path", "sha256 of the content"],
        sources.map(([name, path, hash]) => [
          name,
          h("code", {}, path),
          h("code", {}, hash ?? "–"),
        ]),
        { text: [0, 1, 2], class: "hashes" },
      ),
    ),
    hashes.length
      ? h(
          "details",
          {},
          h("summary", {}, "Hashes of the data"),
          h(
            "div",
            { class: "scroll" },
            table(["objective", "split", "sha256 of the file"], hashes, {
              text: [0, 1, 2],
              class: "hashes",
            }),
          ),
        )
      : "",
    h("h3", {}, "Commands"),
    h(
      "p",
      { class: "small muted" },
      "Look again, export the knee, and run the same study (save the experiment below as experiment.yaml):",
    ),
    command(`evomerge front ${place}`),
    command(`evomerge export ${place} --pick knee --rescore`),
    command("evomerge run experiment.yaml --out NEW"),
    h(
      "details",
      {},
      h("summary", {}, "The experiment, from the ledger"),
      h("pre", {}, h("code", {}, experiment)),
    ),
  );
  byId("footer").textContent =
    `Made ${data.made.replace("T", " ").replace("+00:00", " UTC")} from ${data.run} by ` +
    `${Object.entries(versions)
      .map(([name, version]) => `${name} ${version}`)
      .join(", ")}. The ledger does not record the versions that scored. ` +
    "This page is one file and asks nothing of the network.";
}
