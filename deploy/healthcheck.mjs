// What a container's HEALTHCHECK runs: 0 where /readyz of this container's server is 200, else 1. Kubernetes asks by itself.
const url = `http://127.0.0.1:${process.env.PEREGRINE_PORT ?? 8080}/readyz`
const isReady = await fetch(url).then(
  ({ ok }) => ok,
  () => false,
)
process.exitCode = isReady ? 0 : 1
