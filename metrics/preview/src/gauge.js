// @grafana/ui draws its Gauge by a plugin of flot that Grafana's server ships and npm has not. This draws, from the same
// options, the three things that the dashboards show: the arc of the value, that of the thresholds, and the text.
import $ from 'jquery';

const [START, SWEEP] = [0.9 * Math.PI, 1.2 * Math.PI];

$.plot = (element, [{ data }], { series: { gauges } }) => {
  const { gauge, threshold, value } = gauges;
  const { clientWidth: width, clientHeight: height } = element;
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  element.replaceChildren(canvas);
  const pen = canvas.getContext('2d');
  const margin = 5;
  const markers = threshold.show ? threshold.width : 0;
  const labels = threshold.label.show ? 2 * threshold.label.margin + threshold.label.font.size : 0;
  const drop = Math.sin(START); // how far the ends of the arc reach below its centre
  const outer = Math.min(width / 2 - margin - labels, (height - 2 * margin - labels) / (1 + drop));
  const radius = outer - markers;
  const [x, y] = [width / 2, (height - outer * (1 + drop) + labels) / 2 + outer];
  const angle = (v) => START + SWEEP * Math.min(Math.max((v - gauge.min) / (gauge.max - gauge.min) || 0, 0), 1);
  const arc = (r, thickness, from, to, color) => {
    pen.beginPath();
    pen.arc(x, y, r - thickness / 2, from, to);
    Object.assign(pen, { lineWidth: thickness, strokeStyle: color });
    pen.stroke();
  };
  arc(radius, gauge.width, START, START + SWEEP, gauge.background.color);
  const neutral = angle(gauge.neutralValue ?? gauge.min);
  const at = angle(data[0][1]);
  arc(radius, gauge.width, Math.min(neutral, at), Math.max(neutral, at), value.color);
  Object.assign(pen, { textAlign: 'center', textBaseline: 'middle', fillStyle: value.color });
  if (threshold.show) {
    threshold.values.reduce((from, { value: v, color }) => (arc(outer, markers - 1, from, angle(v), color), angle(v)), START);
  }
  if (threshold.label.show) {
    pen.font = `${threshold.label.font.size}px ${value.font.family}`;
    for (const { value: v } of [{ value: gauge.min }, ...threshold.values]) {
      const r = outer + labels / 2;
      pen.fillText(v, x + r * Math.cos(angle(v)), y + r * Math.sin(angle(v)));
    }
  }
  pen.font = `500 ${value.font.size}px ${value.font.family}`;
  pen.fillText(value.formatter(), x, y);
};
