// Follows the end of the conversation until the person scrolls up; then offers the way back.

const NEAR = 60; // px from the end that still count as being there

export class Scroll {
  #pane;
  #jump;
  #following = true;
  #top = 0;

  constructor(pane, content, jump) {
    this.#pane = pane;
    this.#jump = jump;
    pane.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    jump.addEventListener("click", () => this.toEnd(true));
    const follow = new ResizeObserver(() => this.#following && this.toEnd());
    follow.observe(content);
    follow.observe(pane);
  }

  toEnd(smooth = false) {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.#following = true;
    this.#jump.hidden = true;
    this.#pane.scrollTo({ top: this.#pane.scrollHeight, behavior: smooth && !calm ? "smooth" : "instant" });
  }

  // Only an upward movement is the person's wish: content that grows never moves up.
  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.#pane;
    const atEnd = scrollHeight - scrollTop - clientHeight < NEAR;
    if (atEnd) this.#following = true;
    else if (scrollTop < this.#top - 1) this.#following = false;
    this.#top = scrollTop;
    this.#jump.hidden = this.#following;
  }
}
