// Do what the computer asks: open models, run pictures through them, time them; and say what is going on.

import {load, open} from './models.js';
import {View} from './view.js';
import {Ended, Wire} from './wire.js';

const WARM_MS = 10;  // a processor that slept between two questions has its clock up again after so long
const view = new View();
const wire = new Wire();
const models = new Map();  // number -> {name, wanted, opened, pictures}
const clockStep = step();
let started = 0;
let budget = 0;
let rounds = 0;

const DO = {
  plan(task) {
    budget = task.budget_s;
    return {};
  },

  async load(task) {
    view.phase('Loading runtimes', 0);
    view.state(task.name, 'loading its runtime');
    models.set(task.model, {name: task.name, wanted: task});
    await load(task.format, task.accelerator, task.threads);
    view.state(task.name, 'waiting');
    return {};
  },

  async open(task, bytes) {
    const model = models.get(task.model);
    const {format, accelerator, threads} = model.wanted;
    view.phase(`Opening ${model.name}`, 0.05);
    view.state(model.name, 'opening');
    const times = [performance.now()];
    model.opened = await open(format, accelerator, threads, bytes, task.outputs);
    times.push(performance.now());
    const batch = model.opened.inputShape[0] ?? 1;
    const stored = picture(model, batch);
    for (let call = 0; call < 2; call++) {
      const begin = performance.now();
      await model.opened.run(stored, batch);
      times.push(performance.now() - begin);
    }
    view.state(model.name, `${model.opened.provider}; opened`);
    return {
      input_shape: model.opened.inputShape,
      provider: model.opened.provider,
      note: model.opened.note ?? '',
      cold_s: [(times[1] - times[0]) / 1e3, times[2] / 1e3, times[3] / 1e3],
      call_s: await callSeconds(model, stored, batch),
    };
  },

  async run(task, bytes) {
    const model = models.get(task.model);
    view.phase(`Checking what ${model.name} computes`, 0.1);
    view.state(model.name, `${model.opened.provider}; being checked`);
    const images = task.dtype === 'uint8' ? Float32Array.from(bytes, value => value / 255) :
      new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    const found = await model.opened.run(model.opened.store(images), task.shape[0]);
    view.state(model.name, `${model.opened.provider}; checked`);
    return [
      {outputs: found.map(({name, shape}) => [name, Array.from(shape)])},
      new Blob(found.map(({data}) => data instanceof Float32Array ? data : Float32Array.from(data))),
    ];
  },

  async visit(task) {
    const model = models.get(task.model);
    const {opened, name} = model;
    const stored = picture(model, task.batch);
    started ||= performance.now();
    for (const begin = performance.now(); ;) {
      await opened.run(stored, task.batch);
      if (performance.now() - begin >= WARM_MS) break;
    }
    const ns = [];
    for (let sample = 0; sample < task.samples; sample++) {
      const begin = performance.now();
      for (let call = 0; call < task.calls; call++) await opened.run(stored, task.batch);
      ns.push(Math.round((performance.now() - begin) * 1e6));
    }
    if (task.batch === (opened.inputShape[0] ?? 1)) view.timed(name, ns.map(tick => tick / 1e6 / task.calls));
    const seconds = (performance.now() - started) / 1e3;
    view.phase('Timing, in random order', 0.15 + 0.85 * (budget ? seconds / budget : 0));
    view.advice(`${++rounds} visits, ${seconds.toFixed(0)} of at most ${budget} s. Leave this page open and in front.`);
    view.state(name, `${opened.provider}; timing`);
    return {ns};
  },

  async close(task) {
    const model = models.get(task.model);
    models.delete(task.model);
    await model?.opened?.close();
    return {};
  },

  end(task) {
    view.result(task.rows);
    const failed = task.rows.filter(row => row.failure).length;
    view.end(task.said ?? (failed ? `Done; ${failed} of ${task.rows.length} failed` : 'Done'), false);
    return {};
  },
};

async function work() {
  const {name, facts} = await about();
  view.device(`${name}, ${facts.system}; ${facts.cores} processors; clock in steps of ${(clockStep * 1e6).toFixed(0)} µs` +
    `; ${facts.gpu ? `WebGPU: ${facts.gpu}` : 'no WebGPU'}.`);
  await wire.hello(facts);
  const stopBeating = wire.keepAlive();
  const letScreenSleep = await keepScreenOn();
  try {
    view.phase('Waiting for the computer', 0);
    for (let reply = null, content = null, done = false; !done;) {
      const {request, content: given} = await wire.next(reply, content);
      [reply, content] = await answer(request, given);
      if (request.do === 'end') {
        done = true;
        wire.next(reply, null).catch(() => {});  // the computer waits for this word and then ends
      }
      await new Promise(resolve => setTimeout(resolve));  // let the page draw
    }
  } finally {
    stopBeating();
    letScreenSleep();
  }
}

async function answer(request, given) {
  try {
    const found = await DO[request.do](request, given);
    return Array.isArray(found) ? found : [found, null];
  } catch (error) {
    const model = models.get(request.model);
    const said = String(error?.message ?? error).split('\n')[0].slice(0, 300) || 'no message';
    if (model) view.state(model.name, said, 'failed');
    return [{error: said}, null];
  }
}

// The time of a call, from as many calls as the clock needs.
async function callSeconds(model, stored, batch) {
  for (let calls = 1; ; calls *= 4) {
    const begin = performance.now();
    for (let call = 0; call < calls; call++) await model.opened.run(stored, batch);
    const seconds = (performance.now() - begin) / 1e3;
    if (seconds >= 20 * clockStep || calls >= 4096) return Math.max(seconds, clockStep / 2) / calls;
  }
}

// Random pixels, which take as long as real ones.
function picture(model, batch) {
  model.pictures ??= new Map();
  if (!model.pictures.has(batch)) {
    const [, channels, height, width] = model.opened.inputShape;
    const images = Float32Array.from({length: batch * channels * height * width}, Math.random);
    model.pictures.set(batch, model.opened.store(images));
  }
  return model.pictures.get(batch);
}

// The step of this browser's clock in seconds: between 5 µs and 1 ms, as they make it coarse on purpose.
function step() {
  const steps = [];
  for (let last = performance.now(), tries = 0; steps.length < 20 && tries < 5e6; tries++) {
    const now = performance.now();
    if (now > last) steps.push(now - last);
    last = now;
  }
  return Math.max(1e-6, Math.min(1, Math.min(...steps) / 1e3)) || 1e-3;
}

async function about() {
  const agent = navigator.userAgent;
  const [, product, version] = /(Edg|OPR|SamsungBrowser|Firefox|FxiOS|CriOS|Chrome|Version)\/([\d.]+)/.exec(
    agent.replace(/Chrome\/[\d.]+(?=.*(Edg|OPR|SamsungBrowser)\/)/, '')) ?? [];
  const called = {Edg: 'Edge', OPR: 'Opera', SamsungBrowser: 'Samsung Internet', FxiOS: 'Firefox', CriOS: 'Chrome', Version: 'Safari'};
  const name = product ? `${called[product] ?? product} ${version.split('.')[0]}` : 'unknown browser';
  const facts = {
    agent,
    name,
    system: systemOf(agent),
    cores: navigator.hardwareConcurrency ?? 1,
    memory: navigator.deviceMemory ?? null,
    clock_s: clockStep,
    gpu: await gpu(),
    isolated: self.crossOriginIsolated === true,
  };
  return {name, facts};
}

function systemOf(agent) {
  const found = /Android [\d.]+|(?:iPhone )?OS [\d_]+|Windows NT [\d.]+|Mac OS X [\d_.]+|CrOS \S+|Linux [^;)]+/.exec(agent);
  return found?.[0].replaceAll('_', '.').replace(/^(iPhone )?OS/, 'iOS').replace('x86.64', 'x86_64') ?? navigator.platform;
}

async function gpu() {
  try {
    const adapter = await navigator.gpu?.requestAdapter();
    if (!adapter) return null;
    const {vendor, architecture, description} = adapter.info ?? {};
    return description || [vendor, architecture].filter(Boolean).join(' ') || 'unnamed';
  } catch {
    return null;
  }
}

// A screen that goes dark stops the page. The lock is lost when the page is hidden, and taken again when it is back.
async function keepScreenOn() {
  let lock = null;
  let wanted = true;
  const take = async () => {
    try {
      lock = await navigator.wakeLock.request('screen');
      view.screen('The screen stays on meanwhile.');
    } catch {
      const why = window.isSecureContext ? 'This browser does not let' : 'Over http a browser does not let';
      view.screen(`${why} a page keep the screen on: keep it from going dark yourself.`);
    }
  };
  const seen = () => {
    if (wanted && document.visibilityState === 'visible') take();
  };
  document.addEventListener('visibilitychange', seen);
  await take();
  return () => {
    wanted = false;
    view.screen('');
    document.removeEventListener('visibilitychange', seen);
    lock?.release();
  };
}

work().catch(error => {
  view.end(error instanceof Ended ? error.message : `This page failed: ${error?.message ?? error}`, true);
  if (!(error instanceof Ended)) throw error;
});
