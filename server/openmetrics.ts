import { type Metric, Registry, type RegistryContentType } from 'prom-client'

/** Text of a scrape, with its content type. */
export type Exposition = { readonly contentType: string; readonly text: string }

/**
 * What `registry` has, as a scraper asks for it: OpenMetrics, which alone has exemplars, where its Accept
 * header names that, else Prometheus' text format.
 */
export async function expose(registry: Registry, accept: string | undefined): Promise<Exposition> {
  const asked = accept?.includes('application/openmetrics-text') ? openMetrics(registry) : registry
  return { contentType: asked.contentType, text: await asked.metrics() }
}

/**
 * The same metrics in a registry of the other format. prom-client renames counters for good when it writes
 * OpenMetrics, where `_total` is no part of the name: so it gets views of them instead.
 */
function openMetrics(registry: Registry): Registry<RegistryContentType> {
  const other = new Registry<RegistryContentType>()
  other.setContentType(Registry.OPENMETRICS_CONTENT_TYPE)
  for (const { name } of registry.getMetricsAsArray()) {
    const metric = registry.getSingleMetric(name)
    if (metric !== undefined) other.registerMetric(view(name, metric))
  }
  return other
}

function view(name: string, metric: Metric): Metric {
  const get = async () => {
    const found = await metric.get()
    return { ...found, name: found.name.replace(/_total$/, '') }
  }
  // All that a registry reads of a metric; its type asks for the whole class.
  return { name, get } as unknown as Metric
}
