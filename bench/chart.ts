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
export function lineChart({ title, subtitle, x, y, series }: Chart): string {
  const chart = echarts.init(null, null, {
    renderer: 'svg',
    ssr: true,
    width: WIDTH,
    height: HEIGHT,
  })
  const axis = ({ label, log = false }: Chart['x']) => ({
    type: log ? ('log' as const) : ('value' as const),
    ...(log ? { logBase: 2 } : {}),
    name: label,
    nameLocation: 'middle' as const,
    nameGap: 36,
    min: log ? ('dataMin' as const) : 0,
    minorSplitLine: { show: false },
  })
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
    grid: { left: 76, right: 28, top: 66, bottom: 82 },
    xAxis: axis(x),
    yAxis: { ...axis(y), ...(y.log ? decades : {}), nameGap: 54 },
    series: series.map(({ name, points, dashed = false, marked = false }) => ({
      type: 'line' as const,
      name,
      data: points.map((point) => [...point]),
      symbol: marked ? 'diamond' : 'emptyCircle',
      symbolSize: marked ? 16 : 6,
      lineStyle: { type: dashed ? ('dashed' as const) : ('solid' as const) },
    })),
  })
  const svg = chart.renderToSVGString()
  chart.dispose()
  return `${svg}\n`
}
