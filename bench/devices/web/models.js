// The two runtimes behind one face: load() brings a runtime, open() a model that takes pictures (N, 3, H, W).

const loaded = new Map();

// Bring a runtime, once for each way of using it.
export function load(format, accelerator, threads) {
  const key = `${format} ${accelerator}`;
  if (!loaded.has(key)) loaded.set(key, LOADERS[format](accelerator, threads));
  return loaded.get(key);
}

export async function open(format, accelerator, threads, bytes, outputs) {
  const library = await load(format, accelerator, threads);
  return OPENERS[format](library, accelerator, bytes, outputs);
}

const LOADERS = {
  async onnx(accelerator, threads) {
    const build = accelerator === 'webgpu' ? 'ort-gpu' : 'ort';
    const ort = await import(`./${build}.js`);
    ort.env.wasm.wasmPaths = {wasm: new URL(`${build}.wasm`, location.href).href};
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = 'error';
    return ort;
  },
  async tflite(accelerator) {
    // a second copy of the module for the GPU: one copy holds one build
    const litert = await import(accelerator === 'webgpu' ? './litert.js?gpu' : './litert.js');
    const jspi = accelerator === 'webgpu' && await litert.supportsFeature('jspi');
    await litert.loadLiteRt(new URL('.', location.href).pathname, {jspi});
    return litert;
  },
};

const OPENERS = {
  async onnx(ort, accelerator, bytes) {
    const session = await ort.InferenceSession.create(bytes, {executionProviders: [accelerator], logSeverityLevel: 3});
    const [entry] = session.inputMetadata;
    const layout = layoutOf(session.inputMetadata.length, entry.shape, entry.type);
    const names = called(session.outputNames);
    return {
      ...layout,
      provider: accelerator === 'webgpu' ? 'WebGPU' : 'WASM',
      async run(stored, batch) {
        const tensor = new ort.Tensor(layout.dtype, stored, layout.dims(batch));
        const results = await session.run({[entry.name]: tensor});
        const found = [];
        for (const [at, name] of session.outputNames.entries()) {
          const value = results[name];
          found.push({name: names[at], shape: value.dims, data: await value.getData(true)});
        }
        tensor.dispose();
        return found;
      },
      close: () => session.release(),
    };
  },

  async tflite(litert, accelerator, bytes, outputs) {
    const [model, shares] = await heard(() => litert.loadAndCompile(bytes, {accelerator}));
    const inputs = model.getInputDetails();
    const layout = layoutOf(inputs.length, Array.from(inputs[0].shape), inputs[0].dtype);
    const details = model.getOutputDetails();
    const names = called(details.map(detail => detail.name), outputs);
    const whole = model.isFullyAccelerated && !shares;
    return {
      ...layout,
      provider: accelerator === 'webgpu' ? (whole ? 'WebGPU' : 'WebGPU and WASM') : 'WASM, XNNPACK',
      note: shares,
      async run(stored, batch) {
        const tensor = new litert.Tensor(stored, layout.dims(batch));
        const found = [];
        for (const [at, value] of (await model.run(tensor)).entries()) {
          found.push({name: names[at], shape: Array.from(details[at].shape), data: await value.data()});
          value.delete();
        }
        if (!tensor.deleted) tensor.delete();
        return found;
      },
      close: () => model.delete(),
    };
  },
};

// Do something, and listen to what the runtime prints meanwhile of the shares of GPU and CPU: it tells nowhere else.
async function heard(act) {
  const {log, error} = console;
  let shares = '';
  const listen = (...words) => {
    const found = /(\d+) operations will run on the GPU, and the remaining (\d+)/.exec(words.join(' '));
    if (found) shares = `${found[1]} operations on the GPU, ${found[2]} on the CPU`;
  };
  console.log = console.error = listen;
  try {
    return [await act(), shares];
  } finally {
    Object.assign(console, {log, error});
  }
}

// A single output is "logits", whatever its file calls it; only "embedding" stays. As on the computer.
function called(names) {
  return names.length === 1 && names[0] !== 'embedding' ? ['logits'] : names;
}

// How a file takes pictures: (B, 3, H, W) or (B, H, W, 3), floats in [0, 1] or bytes.
function layoutOf(count, shape, dtype) {
  const told = `${count} inputs, the first ${dtype} [${shape}]`;
  if (count !== 1 || shape.length !== 4 || !['float32', 'uint8'].includes(dtype)) {
    throw new Error(`it takes ${told}; one float32 or uint8 picture is needed`);
  }
  const last = shape[1] !== 3;
  if (last && shape[3] !== 3) throw new Error(`it takes ${told}; pictures of three channels are needed`);
  const free = typeof shape[0] !== 'number' || shape[0] < 1;
  const [height, width] = last ? shape.slice(1, 3) : shape.slice(2, 4);
  if (![height, width].every(side => typeof side === 'number' && side > 0)) {
    throw new Error(`it takes ${told}; a fixed size is needed`);
  }
  return {
    dtype,
    inputShape: [free ? null : shape[0], 3, height, width],
    dims: batch => last ? [batch, height, width, 3] : [batch, 3, height, width],
    store: images => stored(images, last, dtype, 3, height * width),
  };
}

// Bring planes of floats in [0, 1] into a file's own layout and type.
function stored(images, last, dtype, channels, pixels) {
  const bytes = dtype === 'uint8';
  const result = bytes ? new Uint8Array(images.length) : new Float32Array(images.length);
  for (let start = 0; start < images.length; start += channels * pixels) {
    for (let channel = 0; channel < channels; channel++) {
      for (let pixel = 0; pixel < pixels; pixel++) {
        const value = images[start + channel * pixels + pixel];
        const at = last ? start + pixel * channels + channel : start + channel * pixels + pixel;
        result[at] = bytes ? Math.round(value * 255) : value;
      }
    }
  }
  return result;
}
