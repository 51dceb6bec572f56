"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const table = document.getElementById("tensors");

  if (table) {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows);
    const texts = rows.map((row, i) => (row.cells[0].textContent + " " + data.rows[i][0]).toLowerCase()); // whole names, too
    const order = rows.map((_, i) => i);
    const heads = Array.from(table.tHead.rows[0].cells);

    const compare = (a, b, down) => {
      if (a === null || b === null) return (a === null) - (b === null); // what is missing comes last, whichever way
      const sign = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
      return down ? -sign : sign;
    };
    const sort = (column) => {
      const head = heads[column];
      const first = data.columns[column] === "text" ? "ascending" : "descending";
      const other = first === "ascending" ? "descending" : "ascending";
      const way = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((h) => h.setAttribute("aria-sort", h === head ? way : "none"));
      order.sort((i, j) => compare(data.rows[i][column], data.rows[j][column], way === "descending") || i - j);
      body.append(...order.map((i) => rows[i]));
      show();
    };
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sort(column)));

    const input = document.getElementById("filter");
    const status = document.getElementById("shown");
    const more = document.getElementById("more");
    let limit = data.shown; // rows laid out at a time, so that sorting stays quick
    let kept = limit;
    const show = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let matching = 0;
      for (const i of order) {
        const fits = words.every((word) => texts[i].includes(word));
        matching += fits;
        rows[i].hidden = !fits || matching > limit;
      }
      const [found, all] = [matching, rows.length].map((n) => n.toLocaleString("en"));
      status.textContent = `${found} of ${all} tensors` + (matching > limit ? `, the first ${limit} shown` : "");
      more.hidden = matching <= limit;
    };
    addEventListener("beforeprint", () => {
      kept = limit;
      limit = Infinity; // paper has all rows that the filter lets through
      show();
    });
    addEventListener("afterprint", () => {
      limit = kept;
      show();
    });
    input.addEventListener("input", show);
    more.addEventListener("click", () => {
      limit = Infinity;
      show();
    });
    show();
  }

  const closed = () => document.querySelectorAll("details.collapsed:not([open])");
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = Array.from(closed());
    opened.forEach((part) => (part.open = true));
  });
  addEventListener("afterprint", () => opened.forEach((part) => (part.open = false)));

  const measure = () => {
    for (const frame of document.querySelectorAll(".table")) {
      frame.previousElementSibling.hidden = frame.scrollWidth <= frame.clientWidth;
    }
  };
  addEventListener("resize", measure);
  document.querySelectorAll("details").forEach((part) => part.addEventListener("toggle", measure));
  measure();

  const actions = innerWidth < 600 ? false : { export: true, source: false, compiled: false, editor: false };
  const draw = async () => {
    for (const [name, spec] of Object.entries(data.charts)) {
      const place = document.getElementById("chart-" + name);
      await new Promise((done) => setTimeout(done)); // let the page answer between charts
      try {
        await vegaEmbed(place, spec, { renderer: "svg", ast: true, actions, config: data.theme });
      } catch (error) {
        place.textContent = "This chart could not be drawn: " + error.message;
        console.error(error);
      }
    }
    document.documentElement.dataset.drawn = "yes";
  };
  draw();
})();
