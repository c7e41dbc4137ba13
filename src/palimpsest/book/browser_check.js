// What the browser check asks of a page; put into every page before its own scripts.
window.palimpsestCheck = {
  // Text nodes that a reader sees.
  visible(root, skip) {
    const walker = document.createTreeWalker(root || document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
      const parent = walker.currentNode.parentElement;
      const seen = walker.currentNode.data.trim() && parent.checkVisibility();
      if (seen && !parent.closest(`script, style, noscript, template, ${skip}`)) found.push(walker.currentNode);
    }
    return found;
  },

  // Text of the page outside code and outside formulas set by MathJax.
  text() {
    const skip = 'pre, code, script, style, noscript, textarea, svg, mjx-container, template';
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
      if (!walker.currentNode.parentElement.closest(skip)) found.push(walker.currentNode.data);
    }
    return found.join('\n');
  },

  // Pixels by which the page, or a cell or figure of it, is wider than the window.
  wider() {
    const parts = [...document.querySelectorAll('.bd-article .cell, .bd-article figure')];
    const ends = parts.map((e) => Math.floor(e.getBoundingClientRect().right));
    return Math.max(document.documentElement.scrollWidth, ...ends) - window.innerWidth;
  },

  facts() {
    return {
      links: [...document.querySelectorAll('a[href]')].map(
        (a) => new URL(a.getAttribute('href'), document.baseURI).href),
      ids: [...document.querySelectorAll('[id], a[name]')].map((e) => e.id || e.name),
      broken: [...document.images].filter((i) => !i.naturalWidth).map((i) => i.src),
      undescribed: [...document.querySelectorAll('figure img')]
        .filter((i) => !i.alt || i.alt.includes('_images/')).map((i) => i.src),
      wider: palimpsestCheck.wider(),
      strips: document.querySelectorAll('.verdict-strip').length,
      answers: document.querySelectorAll('.answer').length,
      math: [...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map((e) => e.textContent),
      theme: document.documentElement.dataset.theme,
    };
  },

  // Share of code among the visible words.
  codeShare() {
    let code = 0;
    let all = 0;
    for (const node of palimpsestCheck.visible(document.querySelector('.bd-article'), 'mjx-container')) {
      const count = node.data.trim().split(/\s+/).length;
      all += count;
      if (node.parentElement.closest('.cell_input')) code += count;
    }
    return all ? code / all : 0;
  },

  // Texts whose contrast (WCAG 2) is less than asked for, one for each kind of element.
  pale(least) {
    const pen = Object.assign(document.createElement('canvas'), { width: 1, height: 1 })
      .getContext('2d', { willReadFrequently: true });
    const rgba = (colour) => {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = colour;
      pen.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
      return [r, g, b, a / 255];
    };
    const over = (top, below) => [0, 1, 2].map((i) => top[3] * top[i] + (1 - top[3]) * below[i]);
    const linear = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const ground = (element) => {
      const layers = [];
      for (let e = element; e; e = e.parentElement) layers.unshift(rgba(getComputedStyle(e).backgroundColor));
      return layers.reduce((below, top) => over(top, below), [255, 255, 255]);
    };
    const found = new Map();
    for (const node of palimpsestCheck.visible(document.querySelector('.bd-article'), 'mjx-container, pre, svg, .headerlink')) {
      const element = node.parentElement;
      const below = ground(element);
      const ink = over(rgba(getComputedStyle(element).color), below);
      const [more, less] = [light(ink), light(below)].sort((x, y) => y - x);
      const ratio = (more + 0.05) / (less + 0.05);
      const kind = `${element.tagName.toLowerCase()}.${element.className}`;
      if (ratio < least) found.set(kind, `${kind} "${node.data.trim().slice(0, 40)}" ${ratio.toFixed(2)}`);
    }
    return [...found.values()];
  },

  async settled() {
    if (window.MathJax && MathJax.startup && MathJax.startup.promise) await MathJax.startup.promise;
    await Promise.allSettled([...document.images].map((i) => {
      i.loading = 'eager';
      return i.decode();
    }));
  },

  // Rows of the table of claims that are shown.
  claims() {
    return [...document.querySelectorAll('table.claims tbody tr')].filter((row) => !row.hidden).length;
  },
};
