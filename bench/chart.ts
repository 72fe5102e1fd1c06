import * as echarts from 'echarts'

export type Series = {
  readonly name: string
  readonly points: readonly (readonly [x: number, y: number])[]
  readonly dashed?: boolean
  /** Points to be seen from afar. */
  readonly marked?: boolean
}

export type Chart = {
  readonly title: string
  /** Machine and commit. */
  readonly subtitle: string
  readonly x: { readonly label: string; readonly log?: boolean }
  readonly y: { readonly label: string; readonly log?: boolean }
  readonly series: readonly Series[]
  /** Upright lines at moments on x. */
  readonly moments?: readonly { readonly name: string; readonly x: number }[]
}

const WIDTH = 760
const HEIGHT = 460

/** A logarithmic axis from one power of ten to another. */
const decades = {
  logBase: 10,
  min: ({ min }: { min: number }) => 10 ** Math.floor(Math.log10(min)),
  max: ({ max }: { max: number }) => 10 ** Math.ceil(Math.log10(max)),
}

/** A line chart as a standalone SVG. */
export function lineChart({ title, subtitle, x, y, series, moments = [] }: Chart): string {
  const axis = ({ label, log = false }: Chart['x']) => ({
    type: log ? ('log' as const) : ('value' as const),
    ...(log ? { logBase: 2 } : {}),
    name: label,
    nameLocation: 'middle' as const,
    nameGap: 36,
    min: log ? ('dataMin' as const) : 0,
    minorSplitLine: { show: false },
  })
  return render(
    { title, subtitle },
    { left: 76, bottom: 82 },
    {
      xAxis: axis(x),
      yAxis: { ...axis(y), ...(y.log ? decades : {}), nameGap: 54 },
      series: series.map(({ name, points, dashed = false, marked = false }, i) => ({
        type: 'line' as const,
        name,
        data: points.map((point) => [...point]),
        symbol: marked ? 'diamond' : 'emptyCircle',
        symbolSize: marked ? 16 : 6,
        lineStyle: { type: dashed ? ('dashed' as const) : ('solid' as const) },
        ...(i === 0 && moments.length > 0 ? { markLine: upright(moments) } : {}),
      })),
    },
  )
}

function upright(moments: NonNullable<Chart['moments']>) {
  return {
    symbol: 'none',
    lineStyle: { color: '#888888', type: 'dotted' as const },
    label: { position: 'insideEndTop' as const, fontSize: 9, color: '#444444' },
    data: moments.map(({ name, x }) => ({ xAxis: x, label: { formatter: name } })),
  }
}

export type BarChart = Pick<Chart, 'title' | 'subtitle'> & {
  readonly categories: readonly string[]
  /** A value per category; NaN where there is none. */
  readonly series: readonly { readonly name: string; readonly values: readonly number[] }[]
}

/** Groups of bars with their values, as a standalone SVG. */
export function barChart({ title, subtitle, categories, series }: BarChart): string {
  return render(
    { title, subtitle },
    { left: 52, bottom: 62 },
    {
      xAxis: {
        type: 'category',
        data: [...categories],
        axisLabel: { fontSize: 10, interval: 0 },
      },
      yAxis: { type: 'value', min: 0 },
      series: series.map(({ name, values }) => ({
        type: 'bar' as const,
        name,
        data: values.map((value) => (Number.isFinite(value) ? Number(value.toPrecision(3)) : '-')),
        label: { show: true, position: 'top' as const, fontSize: 9 },
      })),
    },
  )
}

/** What all charts look like, with the margins that the axes' labels need. */
function render(
  { title, subtitle }: Pick<Chart, 'title' | 'subtitle'>,
  margins: { readonly left: number; readonly bottom: number },
  what: echarts.EChartsOption,
): string {
  const size = { width: WIDTH, height: HEIGHT }
  const chart = echarts.init(null, null, { renderer: 'svg', ssr: true, ...size })
  chart.setOption({
    animation: false,
    backgroundColor: '#ffffff',
    title: {
      text: title,
      subtext: subtitle,
      left: 'center',
      textStyle: { fontSize: 15 },
      subtextStyle: { fontSize: 10 },
    },
    legend: { bottom: 0 },
    grid: { ...margins, right: 28, top: 66 },
    ...what,
  })
  const svg = chart.renderToSVGString()
  chart.dispose()
  return `${svg}\n`
}
