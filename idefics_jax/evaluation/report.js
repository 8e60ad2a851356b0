// The filters: after how many shots, which answers, which words; the worst answers first.
"use strict";

const form = document.querySelector(".filters");
if (form) {
  const list = document.querySelector("main"), output = form.querySelector("output");
  const cards = Array.from(list.children, (card, index) => ({
    card, index,
    scores: JSON.parse(card.dataset.scores), marks: JSON.parse(card.dataset.marks),
    rows: card.querySelectorAll("[data-place]"),
    text: card.textContent.toLowerCase(),
  }));
  const value = (score) => (score === null ? Infinity : score);

  function show() {
    const place = Number(form.elements.shots.value), mark = form.elements.marks.value;
    const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const { card, marks, rows, text } of cards) {
      const kept = !mark || marks[place] === mark || (mark === "wrong" && marks[place] === "partly");
      card.hidden = !(kept && words.every((word) => text.includes(word)));
      count += !card.hidden;
      for (const row of rows) row.classList.toggle("current", Number(row.dataset.place) === place);
    }
    const before = (a, b) => value(a.scores[place]) - value(b.scores[place]) || a.index - b.index;
    list.append(...[...cards].sort(before).map(({ card }) => card));
    output.textContent = `${count} of ${cards.length} shown`;
    document.querySelector("#none").hidden = count > 0;
  }

  for (const event of ["input", "change"]) form.addEventListener(event, show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
}
