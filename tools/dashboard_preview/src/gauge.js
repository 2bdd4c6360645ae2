// @grafana/ui draws its Gauge by a plugin of flot that Grafana's server ships and npm has not. This draws, from the same
// options, the arc of the value, that of the thresholds, and the text.
import $ from 'jquery';

const [START, SWEEP, MARGIN] = [0.9 * Math.PI, 1.2 * Math.PI, 5];

$.plot = (element, [{ data }], { series: { gauges } }) => {
  const { gauge, threshold, value } = gauges;
  const { clientWidth: width, clientHeight: height } = element;
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  element.replaceChildren(canvas);
  const pen = canvas.getContext('2d');
  const markers = threshold.show ? threshold.width : 0;
  const drop = Math.sin(START); // how far the ends of the arc reach below its centre
  const outer = Math.min(width / 2 - MARGIN, (height - 2 * MARGIN) / (1 + drop));
  const [x, y] = [width / 2, (height - outer * (1 + drop)) / 2 + outer];
  const angle = (v) => START + SWEEP * Math.min(Math.max((v - gauge.min) / (gauge.max - gauge.min) || 0, 0), 1);
  const arc = (radius, thickness, from, to, color) => {
    pen.beginPath();
    pen.arc(x, y, radius - thickness / 2, Math.min(from, to), Math.max(from, to));
    Object.assign(pen, { lineWidth: thickness, strokeStyle: color });
    pen.stroke();
  };
  arc(outer - markers, gauge.width, START, START + SWEEP, gauge.background.color);
  arc(outer - markers, gauge.width, angle(gauge.neutralValue ?? gauge.min), angle(data[0][1]), value.color);
  let from = START;
  for (const { value: to, color } of threshold.show ? threshold.values : []) {
    arc(outer, markers - 1, from, angle(to), color);
    from = angle(to);
  }
  Object.assign(pen, { textAlign: 'center', textBaseline: 'middle', fillStyle: value.color });
  pen.font = `500 ${value.font.size}px ${value.font.family}`;
  pen.fillText(value.formatter(), x, y);
};
