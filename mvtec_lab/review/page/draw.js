// Draw boxes and a mask over an image. The mask is a grid of the image as it is shown, boxes are in its own pixels.

const TINT = [11, 140, 220, 120]; // of marked pixels: red, green, blue, alpha
const NEAR = 6; // pixels of the screen: a shorter drag is a click

/** Return a mask's alpha as COCO's run lengths: column by column, how many pixels are 0, then 1, then 0 ... */
export function runsOf(pixels, width, height) {
  const runs = [];
  let last = false, run = 0;
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      const marked = pixels[4 * (y * width + x) + 3] > 127;
      if (marked !== last) {
        runs.push(run);
        last = marked;
        run = 0;
      }
      run++;
    }
  }
  runs.push(run);
  return runs;
}

/** Return the pixels of run lengths, as an ImageData that is opaque where they mark. */
export function pixelsOf(runs, width, height) {
  const image = new ImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  const marked = new Uint32Array(new Uint8Array([...TINT.slice(0, 3), 255]).buffer)[0];
  let place = 0;
  runs.forEach((run, index) => {
    for (const end = place + run; place < end; place++) {
      if (index % 2) pixels[(place % height) * width + Math.floor(place / height)] = marked;
    }
  });
  return image;
}

/** Show marks on a canvas and let a pointer change them; `changed` is called with what was drawn, a stroke or a box. */
export class Drawing {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed;
    this.mask = document.createElement("canvas");
    this.tool = "look";
    this.brush = 24; // pixels of the image as it is shown
    this.boxes = [];
    this.scale = 1; // pixels of the image for one of it as it is shown
    this.drag = null;
    this.ready = false; // an image's marks are loaded: before that a stroke would be another image's
    canvas.addEventListener("pointerdown", event => this.begin(event));
    canvas.addEventListener("pointermove", event => this.move(event));
    canvas.addEventListener("pointerup", event => this.end(event));
    canvas.addEventListener("pointercancel", () => this.cancel());
  }

  /** Take over an image's marks: `item` as the server gives it. */
  load(item) {
    const [width, height] = item.shown;
    this.scale = item.width / width;
    Object.assign(this.mask, {width, height});
    this.boxes = item.boxes.map(box => [...box]);
    this.drag = null;
    this.ready = true;
    this.put(item.mask);
  }

  put(runs) {
    const context = this.mask.getContext("2d", {willReadFrequently: true});
    context.clearRect(0, 0, this.mask.width, this.mask.height);
    if (runs) context.putImageData(pixelsOf(runs, this.mask.width, this.mask.height), 0, 0);
    this.show();
  }

  runs() {
    const {width, height} = this.mask;
    return runsOf(this.mask.getContext("2d", {willReadFrequently: true}).getImageData(0, 0, width, height).data, width, height);
  }

  /** Draw the marks with the pixels that the screen has, whatever the image's own are. */
  show() {
    const sharp = window.devicePixelRatio || 1, {clientWidth, clientHeight} = this.canvas;
    const width = Math.round(clientWidth * sharp), height = Math.round(clientHeight * sharp);
    Object.assign(this.canvas, {width, height});
    const context = this.canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.globalAlpha = TINT[3] / 255;
    if (this.mask.width && this.mask.height) context.drawImage(this.mask, 0, 0, width, height);
    context.globalAlpha = 1;
    const boxes = this.drag && this.drag.box ? [...this.boxes, this.drag.box] : this.boxes;
    const scale = width / (this.mask.width * this.scale);
    for (const [x0, y0, x1, y1] of boxes) {
      const place = [x0, y0, x1 - x0, y1 - y0].map(edge => edge * scale);
      for (const [colour, wide] of [["#fff", 4], ["#0b5c95", 2]]) { // a bright rim, on dark images as well
        context.strokeStyle = colour;
        context.lineWidth = wide * sharp;
        context.strokeRect(...place);
      }
    }
  }

  /** Return where a pointer is, in pixels of the image as it is shown. */
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * this.mask.width / box.width, (event.clientY - box.top) * this.mask.height / box.height];
  }

  begin(event) {
    if (this.tool === "look" || this.drag || !this.ready || event.button !== 0) return;
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.drag = {from: this.at(event), last: this.at(event), screen: [event.clientX, event.clientY], id: event.pointerId};
    if (this.tool !== "box") this.stroke(this.drag.last, this.drag.last);
  }

  move(event) {
    if (!this.drag || this.drag.id !== event.pointerId) return;
    const here = this.at(event);
    if (this.tool === "box") {
      this.drag.box = this.box(this.drag.from, here);
      this.show();
    } else {
      this.stroke(this.drag.last, here);
    }
    this.drag.last = here;
  }

  end(event) {
    if (!this.drag || this.drag.id !== event.pointerId) return;
    const {from, screen} = this.drag, here = this.at(event);
    this.drag = null;
    if (this.tool !== "box") {
      this.changed({mask: this.runs()});
      return;
    }
    if (Math.hypot(event.clientX - screen[0], event.clientY - screen[1]) < NEAR) {
      const [x, y] = here.map(edge => edge * this.scale);
      const hit = this.boxes.findLastIndex(([x0, y0, x1, y1]) => x >= x0 && x <= x1 && y >= y0 && y <= y1);
      if (hit < 0) return this.show();
      this.boxes.splice(hit, 1);
    } else {
      const box = this.box(from, here);
      if (box[2] - box[0] < 1 || box[3] - box[1] < 1) return this.show();
      this.boxes.push(box);
    }
    this.show();
    this.changed({boxes: this.boxes});
  }

  cancel() {
    const painted = this.drag && this.tool !== "box";
    this.drag = null;
    this.show();
    if (painted) this.changed({mask: this.runs()});
  }

  /** Return the box between two places, in whole pixels of the image. */
  box(one, other) {
    const edge = (value, most) => Math.min(most, Math.max(0, value)) * this.scale;
    const xs = [one[0], other[0]].map(x => edge(x, this.mask.width)).sort((a, b) => a - b);
    const ys = [one[1], other[1]].map(y => edge(y, this.mask.height)).sort((a, b) => a - b);
    return [Math.floor(xs[0]), Math.floor(ys[0]), Math.ceil(xs[1]), Math.ceil(ys[1])];
  }

  stroke(from, to) {
    const context = this.mask.getContext("2d", {willReadFrequently: true});
    context.globalCompositeOperation = this.tool === "erase" ? "destination-out" : "source-over";
    context.strokeStyle = `rgb(${TINT.slice(0, 3)})`;
    Object.assign(context, {lineWidth: this.brush, lineCap: "round", lineJoin: "round"});
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
    context.globalCompositeOperation = "source-over";
    this.show();
  }
}
