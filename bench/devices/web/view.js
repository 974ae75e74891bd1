// What the page shows.

const at = id => document.getElementById(id);

export class View {
  constructor() {
    this.rows = new Map();  // name -> {item, times}
    this.begun = 0;
    this.budget = 0;
  }

  phase(text, share) {
    at('phase').textContent = text;
    if (share !== undefined) at('bar').value = Math.min(1, share);
  }

  advice(text) { at('advice').textContent = text; }

  device(text) { at('device').textContent = text; }

  screen(text) { at('screen').textContent = text; }

  // Add a model, or return the one that is there.
  model(name) {
    if (!this.rows.has(name)) {
      const item = document.createElement('li');
      const parts = {};
      for (const part of ['name', 'time', 'state', 'verdict', 'track']) {
        parts[part] = document.createElement('div');
        parts[part].className = part;
        item.append(parts[part]);
      }
      parts.name.textContent = name;
      parts.fill = document.createElement('div');
      parts.fill.className = 'fill';
      parts.track.append(parts.fill);
      at('models').append(item);
      this.rows.set(name, {parts, times: []});
    }
    return this.rows.get(name);
  }

  state(name, text, kind = '') {
    const {parts} = this.model(name);
    parts.state.textContent = text;
    parts.state.className = `state ${kind}`;
  }

  timed(name, milliseconds) {
    const row = this.model(name);
    row.times.push(...milliseconds);
    this.time(name, median(row.times));
  }

  time(name, milliseconds) {
    const {parts} = this.model(name);
    const number = document.createElement('b');
    number.textContent = written(milliseconds);
    parts.time.replaceChildren(number, ' ms');
    this.rows.get(name).shown = milliseconds;
    const slowest = Math.max(...Array.from(this.rows.values(), row => row.shown ?? 0));
    for (const {parts: {fill}, shown} of this.rows.values()) {
      if (shown) fill.style.width = `${Math.max(2, 100 * shown / slowest)}%`;
    }
  }

  // Show the computer's own result, which counts.
  result(rows) {
    for (const row of rows) {
      const {parts} = this.model(row.name);
      if (row.p50_ms !== null) this.time(row.name, row.p50_ms);
      if (row.failure) {
        this.state(row.name, row.failure, 'failed');
        continue;
      }
      const facts = [row.provider];
      if (row.proven) facts.push(row.parity_db === null ? 'equal to PyTorch' : `${Math.round(row.parity_db)}\u00a0dB to PyTorch`);
      if (row.p90_ms !== null) facts.push(`p90\u00a0${written(row.p90_ms)}\u00a0ms`);
      this.state(row.name, facts.filter(Boolean).join(' · '));
      parts.verdict.textContent = row.baseline ? 'baseline' : row.speedup === null ? '' :
        `${row.verdict === 'inconclusive' ? '≈' : ''}${row.speedup.toFixed(2)}× ${row.verdict}`;
      parts.verdict.className = `verdict ${row.verdict ?? ''}`;
    }
    if (rows.some(row => row.p50_ms !== null)) {
      at('legend').hidden = false;
      at('legend').textContent = 'Times are the median of one picture; a shorter bar is better. dB tell how close the outputs are to those of PyTorch.';
    }
  }

  end(text, failed) {
    this.phase(text);
    this.advice(failed ? '' : 'The whole table is on the computer. You can close this page.');
    document.body.classList.add(failed ? 'over' : 'done');
  }
}

function median(values) {
  const sorted = Float64Array.from(values).sort();
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

function written(milliseconds) {
  return milliseconds >= 100 ? milliseconds.toFixed(0) : milliseconds >= 10 ? milliseconds.toFixed(1) : milliseconds.toFixed(2);
}
