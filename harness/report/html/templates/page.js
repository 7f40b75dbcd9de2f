"use strict";
// Copies without the network and from a file: the clipboard where the browser gives it, else a selection.
for (const button of document.querySelectorAll("button[data-copy]")) {
  const from = document.getElementById(button.dataset.copy);
  const label = button.textContent;
  const tell = (text) => {
    button.textContent = text;
    setTimeout(() => { button.textContent = label; }, 1600);
  };
  const select = () => {
    const selection = window.getSelection();
    selection.removeAllRanges();
    const range = document.createRange();
    range.selectNodeContents(from);
    selection.addRange(range);
  };
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(from.textContent);
      tell("Copied");
    } catch {
      select();
      tell(document.execCommand("copy") ? "Copied" : "Selected: press Ctrl+C");
    }
  });
}
