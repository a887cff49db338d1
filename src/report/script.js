// Values under the pointer; the page is whole without it.
(() => {
  const read = plot => [...plot.querySelectorAll('[data-values]')].map(path => ({
    name: path.dataset.name,
    colour: [...path.classList].find(name => /^[cp]\d$/.test(name)),
    marked: path.classList.contains('marked'),
    points: path.dataset.values.split(';').filter(Boolean).map(point => {
      const [x, ...value] = point.split(' ');
      return [+x, value.join(' ')];
    }),
  })).filter(line => line.points.length).sort((a, b) => b.marked - a.marked);
  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < x) low = middle; else high = middle;
    }
    return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? points[low] : points[high];
  };
  const element = (tag, name, text) => {
    const made = document.createElement(tag);
    made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const show = x => x.toLocaleString('en', { maximumSignificantDigits: 6, useGrouping: Math.abs(x) >= 1e4 }).replaceAll(',', '\u202f');
  for (const plot of document.querySelectorAll('.plot')) {
    let lines;
    const rule = element('div', 'rule'), tip = element('div', 'tip');
    const hide = () => { rule.remove(); tip.remove(); };
    const move = event => {
      lines ??= read(plot);
      if (!lines.length) return;
      const box = plot.getBoundingClientRect(), low = +plot.dataset.low, high = +plot.dataset.high;
      const at = low + (event.clientX - box.left) / box.width * (high - low);
      const found = lines.map(line => nearest(line.points, at));
      // A mark within reach draws the pointer to it.
      const reach = 10 / box.width * (high - low), far = point => Math.abs(point[0] - at);
      const marks = found.filter((point, i) => lines[i].marked && far(point) <= reach);
      const x = (marks.length ? marks : found).reduce((a, b) => far(b) < far(a) ? b : a)[0];
      tip.replaceChildren(element('b', '', plot.dataset.x + ' ' + show(x)));
      lines.forEach(line => {
        const point = nearest(line.points, x), row = element('span', 'row');
        // A line that has ended says nothing of what comes later.
        if (Math.abs(point[0] - x) > (high - low) / 2 / Math.min(line.points.length, 20)) return;
        row.append(element('i', 'chip ' + line.colour), element('span', '', line.name), element('b', '', point[1]));
        if (point[0] !== x) row.append(element('small', '', 'at ' + show(point[0])));
        tip.append(row);
      });
      plot.append(rule, tip);
      const share = (x - low) / (high - low);
      rule.style.left = share * 100 + '%';
      const left = share * box.width;
      // Beside the rule, where there is more room, and never past the edge of the window.
      const wanted = share > 0.5 ? left - tip.offsetWidth - 10 : left + 10;
      const most = document.documentElement.clientWidth - box.left - tip.offsetWidth - 4;
      tip.style.left = Math.max(4 - box.left, Math.min(wanted, most)) + 'px';
    };
    plot.addEventListener('pointermove', move);
    plot.addEventListener('pointerdown', move);
    plot.addEventListener('pointerleave', hide);
  }
})();
