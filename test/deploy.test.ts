// What lies in deploy/ and in the Dockerfile holds together, and with the server: settings, ports, paths, seconds.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { describe, type TestContext, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { validate } from 'dockerfile-utils'
import { parse, parseAllDocuments } from 'yaml'
import { parseServerConfig } from '../server/config.js'
import { type Json, tempFolder } from './fixtures.js'

const TSC = fileURLToPath(import.meta.resolve('typescript/package.json')).replace(
  /package\.json$/,
  'bin/tsc',
)
const NO_KUBECTL = hasKubectl() ? false : 'no kubectl on PATH: nothing puts the files together'

function hasKubectl(): boolean {
  try {
    execFileSync('kubectl', ['kustomize', 'deploy/kubernetes/gpu'], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

/** The objects that `kubectl apply -k` would send. */
function rendered(folder: string): Json[] {
  const text = execFileSync('kubectl', ['kustomize', folder], { encoding: 'utf8' })
  return parseAllDocuments(text).map((document) => document.toJS())
}

function read(file: string): string {
  return readFileSync(file, 'utf8')
}

const kindOf = (objects: readonly Json[], kind: string): Json =>
  objects.find((object) => object.kind === kind)

/** The variables of a container that are settings: refused where the server would not start with them. */
function settingsOf(env: Readonly<Record<string, unknown>>) {
  const texts = Object.entries(env).map(([name, value]) => [name, String(value)])
  return parseServerConfig([], Object.fromEntries(texts)).config
}

/** What kubernetes-types says of objects as they are: unknown fields, missing ones, wrong types. */
function typeFaults(t: TestContext, objects: readonly Json[]): string {
  const folder = tempFolder(t)
  const modules: Readonly<Record<string, string>> = {
    v1: 'core/v1',
    'networking.k8s.io/v1': 'networking/v1',
  }
  const source = objects
    .map((object: Json, i) => {
      const module = modules[object.apiVersion] ?? object.apiVersion
      const type = `import('kubernetes-types/${module}').${object.kind}`
      return `export const object${i}: ${type} = ${JSON.stringify(object, null, 2)}`
    })
    .join('\n')
  writeFileSync(`${folder}/objects.ts`, source)
  const types = fileURLToPath(import.meta.resolve('kubernetes-types/package.json'))
  const paths = { 'kubernetes-types/*': [types.replace(/package\.json$/, '*.d.ts')] }
  const compilerOptions = { strict: true, noEmit: true, module: 'nodenext', types: [], paths }
  writeFileSync(
    `${folder}/tsconfig.json`,
    JSON.stringify({ compilerOptions, files: ['objects.ts'] }),
  )
  try {
    execFileSync(process.execPath, [TSC, '-p', folder], { encoding: 'utf8', stdio: 'pipe' })
    return ''
  } catch (error) {
    return error instanceof Error && 'stdout' in error ? String(error.stdout) : String(error)
  }
}

describe('Dockerfile', () => {
  const dockerfile = read('Dockerfile')

  test('has no fault that the linter knows', () => {
    const faults = validate(dockerfile, {}).map(
      ({ message, range }) => `${range.start.line + 1}: ${message}`,
    )
    assert.deepEqual(faults, [])
    assert.notDeepEqual(validate('FROM node\nRUNS x', {}), [], 'it knows one')
  })

  test('copies what there is, and the builder gets it', () => {
    const wanted = [...dockerfile.matchAll(/^COPY (?!--from)(.+) \S+$/gm)].flatMap(
      ([, sources = '']) => sources.split(' '),
    )
    const tracked = ['deploy/healthcheck.mjs', 'server/playground/page', 'demo', 'LICENSE']
    const patterns = read('.dockerignore').split('\n')
    for (const path of [...wanted, ...tracked]) {
      assert.ok(existsSync(path), `${path} is not there`)
      if (path === '.') continue
      const isTaken = patterns.some(
        (line) => line === `!${path}` || path.startsWith(`${line.slice(1)}/`),
      )
      assert.ok(isTaken, `.dockerignore keeps ${path} away`)
    }
    for (const folder of parse(read('tsconfig.json')).include) {
      assert.ok(patterns.includes(`!${folder}`), `.dockerignore keeps ${folder} away from tsc`)
    }
  })

  test('both images run as a user without a name, and their settings are ones of the server', () => {
    const images = dockerfile.split(/^(?=FROM )/m).filter((stage) => stage.includes('\nENTRYPOINT'))
    assert.equal(images.length, 2)
    for (const image of images) {
      assert.match(image, /^USER 1000:1000$/m)
      assert.match(image, /^STOPSIGNAL SIGTERM$/m)
      assert.match(image, /^HEALTHCHECK /m)
      const env = [...image.matchAll(/(PEREGRINE_\w+)=(\S+)/g)].map(([, name, value]) => [
        name,
        value,
      ])
      assert.equal(settingsOf(Object.fromEntries(env)).host, '0.0.0.0')
    }
  })
})

describe('compose.yaml', () => {
  const { services } = parse(read('deploy/compose.yaml'), { merge: true })

  test('names the replicas that nginx knows, with settings of the server and time to drain', () => {
    const upstreams = [...read('deploy/nginx/upstreams.conf').matchAll(/^server (\S+):(\d+)/gm)]
    assert.equal(upstreams.length, 3)
    for (const [, name = '', port] of upstreams) {
      const { environment, stop_grace_period: grace } = services[name]
      const config = settingsOf(environment)
      assert.equal(config.port, Number(port))
      const seconds = (config.drainDelayMs + config.shutdownTimeoutMs) / 1000
      assert.ok(seconds < Number.parseInt(grace, 10), `${name} is killed after ${grace}`)
    }
  })

  test('lets Prometheus ask every replica', () => {
    const { scrape_configs: jobs } = parse(read('deploy/prometheus/compose.yml'))
    const targets: string[] = jobs.flatMap(({ static_configs: configs }: Json) =>
      configs.flatMap(({ targets }: Json) => targets),
    )
    const upstreams = read('deploy/nginx/upstreams.conf').match(/^server \S+/gm)
    assert.deepEqual(
      targets.map((target) => `server ${target}`),
      upstreams,
    )
  })

  test('mounts what there is', () => {
    const mounts: string[] = Object.values<Json>(services).flatMap(({ volumes = [] }) => volumes)
    const files = mounts.flatMap((mount) =>
      mount.startsWith('./') ? [mount.split(':')[0] ?? ''] : [],
    )
    assert.ok(files.length > 5)
    for (const file of files) assert.ok(existsSync(`deploy/${file}`), `${file} is not there`)
  })
})

describe('kubernetes', { skip: NO_KUBECTL }, () => {
  for (const name of ['base', 'gpu']) {
    test(`${name}: every object is as Kubernetes wants it`, (t) => {
      assert.equal(typeFaults(t, rendered(`deploy/kubernetes/${name}`)), '')
    })

    test(`${name}: the settings are ones of the server, and a pod has time to drain`, () => {
      const objects = rendered(`deploy/kubernetes/${name}`)
      const { name: map } = kindOf(objects, 'ConfigMap').metadata
      const { spec } = kindOf(objects, 'Deployment').spec.template
      const [container] = spec.containers
      assert.ok(container.envFrom.some((from: Json) => from.configMapRef?.name === map))
      const config = settingsOf(kindOf(objects, 'ConfigMap').data)
      const seconds = (config.drainDelayMs + config.shutdownTimeoutMs) / 1000
      assert.ok(config.drainDelayMs > 0)
      assert.ok(seconds < spec.terminationGracePeriodSeconds)
      assert.equal(config.port, container.ports[0].containerPort)
      assert.equal(config.provider, name === 'gpu' ? 'cuda' : 'cpu')
      if (name === 'base') {
        assert.equal(
          config.workers * config.threadsPerWorker,
          Number(container.resources.requests.cpu),
        )
      }
    })

    test(`${name}: all that chooses pods chooses these`, () => {
      const objects = rendered(`deploy/kubernetes/${name}`)
      const deployment = kindOf(objects, 'Deployment')
      const { labels } = deployment.spec.template.metadata
      const spec = (kind: string) => kindOf(objects, kind).spec
      for (const selector of [
        deployment.spec.selector.matchLabels,
        spec('Service').selector,
        spec('PodDisruptionBudget').selector.matchLabels,
        spec('NetworkPolicy').podSelector.matchLabels,
        ...deployment.spec.template.spec.topologySpreadConstraints.map(
          (one: Json) => one.labelSelector.matchLabels,
        ),
      ]) {
        assert.deepEqual(selector, labels)
      }
      const [, redis] = spec('NetworkPolicy').egress
      assert.deepEqual(redis.to[0].podSelector.matchLabels, { 'app.kubernetes.io/name': 'redis' })
      const { scaleTargetRef } = spec('HorizontalPodAutoscaler')
      assert.equal(scaleTargetRef.name, deployment.metadata.name)
      for (const { http } of spec('Ingress').rules) {
        for (const { backend } of http.paths) {
          assert.equal(backend.service.name, kindOf(objects, 'Service').metadata.name)
        }
      }
    })
  }

  test('a field that is none is found', (t) => {
    const [deployment] = rendered('deploy/kubernetes/base').filter(
      ({ kind }) => kind === 'Deployment',
    )
    deployment.spec.template.spec.containers[0].readynessProbe = {}
    assert.match(typeFaults(t, [deployment]), /readynessProbe/)
  })

  test('every file is part of what is applied', () => {
    for (const name of ['base', 'gpu']) {
      const folder = `deploy/kubernetes/${name}`
      const kustomization = read(`${folder}/kustomization.yaml`)
      for (const file of readdirSync(folder)) {
        if (file === 'kustomization.yaml') continue
        assert.ok(kustomization.includes(file), `${folder}/${file} is in no kustomization`)
      }
    }
  })
})
