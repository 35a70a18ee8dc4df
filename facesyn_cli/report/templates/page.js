// Only comfort: without it the page shows the same. Tips for what carries data-tip, and definitions next to their name.
"use strict";

const tip = document.getElementById("tip");

function showTip(event) {
  const target = event.target.closest("[data-tip]");
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.dataset.tip;
  const box = target.getBoundingClientRect();
  const x = event.clientX ?? box.x + box.width / 2;
  const y = event.clientY ?? box.bottom;
  const below = y + 18 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(6, Math.min(x + 12, innerWidth - tip.offsetWidth - 6))}px`;
  tip.style.top = `${below ? y + 18 : y - tip.offsetHeight - 12}px`;
}

for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, showTip);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true, capture: true });

function placeBeside(button) {
  const box = button.getBoundingClientRect();
  const note = document.getElementById(button.getAttribute("popovertarget"));
  if (innerWidth < 700 || !note.matches(":popover-open")) return;
  const below = box.bottom + 8 + note.offsetHeight < innerHeight;
  const left = Math.max(8, Math.min(box.left, innerWidth - note.offsetWidth - 8));
  const top = below ? box.bottom + 8 : Math.max(8, box.top - 8 - note.offsetHeight);
  Object.assign(note.style, { margin: 0, inset: "auto", left: `${left}px`, top: `${top}px` });
}

for (const button of document.querySelectorAll("[popovertarget]")) {
  // The browser opens the definition after the click was told to us, and before it paints.
  button.addEventListener("click", () => requestAnimationFrame(() => placeBeside(button)));
}
