import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { describe, type TestContext, test } from 'node:test'
import type { Ranker } from '../../falcon/types.js'
import { appOf, LIMITS, rankerOf } from '../../test/plain-ranker.js'
import type { AppOptions } from '../app.js'
import { readAssets } from './assets.js'

const MAX_PAGE_BYTES = 100_000

async function pageOf(t: TestContext, options: Partial<AppOptions> = {}) {
  const app = await appOf(undefined, options)
  t.after(() => app.close())
  return (url: string, headers: Record<string, string> = {}) => app.inject({ url, headers })
}

/** A ranker that bears the demo model's name, which the samples belong to. */
function demoRanker(): Ranker {
  const ranker = rankerOf()
  return { ...ranker, model: { ...ranker.model, name: 'kuairand-demo' } }
}

describe('the page', () => {
  test('comes with a policy that lets nothing in but its own files', async (t) => {
    const get = await pageOf(t)
    const res = await get('/')
    assert.equal(res.statusCode, 200)
    assert.equal(res.headers['content-type'], 'text/html; charset=utf-8')
    assert.equal(res.headers['x-content-type-options'], 'nosniff')
    assert.equal(res.headers['cache-control'], 'no-cache')
    const policy = String(res.headers['content-security-policy'])
    assert.match(policy, /default-src 'none'; script-src 'self'; style-src 'self'/)
    assert.match(policy, /require-trusted-types-for 'script'/)
    assert.ok(!policy.includes('unsafe'))
    assert.doesNotMatch(res.body, /<script(?![^>]* src=)|<style| style=| on[a-z]+=|https?:\/\//)
  })

  test('finds every file that it names, and every module the modules that it imports', async (t) => {
    const get = await pageOf(t)
    const seen = new Set<string>()
    let bytes = 0
    const follow = async (url: string): Promise<void> => {
      if (seen.has(url)) return
      seen.add(url)
      const { statusCode, body, headers } = await get(url)
      assert.equal(statusCode, 200, url)
      const type = url.endsWith('.js') ? 'text/javascript' : url.endsWith('.css') ? 'text/css' : ''
      assert.ok(String(headers['content-type']).startsWith(type), url)
      bytes += body.length
      const named = url.endsWith('.js')
        ? [...body.matchAll(/from '(.+?)'/g)].map(
            ([, file = '']) => new URL(file, `http://h${url}`),
          )
        : [...body.matchAll(/(?:href|src)="(\/playground\/.+?)"/g)].map(
            ([, path]) => new URL(`http://h${path}`),
          )
      for (const { pathname } of named) await follow(pathname)
    }
    await follow('/')
    assert.deepEqual(
      [...seen].filter((url) => url !== '/').sort(),
      [...readAssets().keys()]
        .filter((name) => name !== 'index.html')
        .map((name) => `/playground/${name}`)
        .sort(),
    )
    assert.ok(bytes < MAX_PAGE_BYTES, `the page is ${bytes} bytes`)
  })

  test('is sent once: a browser that has it gets 304', async (t) => {
    const get = await pageOf(t)
    for (const url of ['/', '/playground/main.js', '/playground/samples']) {
      const { headers } = await get(url)
      const etag = String(headers.etag)
      assert.match(etag, /^"[\w-]{22}"$/)
      const again = await get(url, { 'if-none-match': `"other", W/${etag}` })
      assert.deepEqual([again.statusCode, again.body], [304, ''])
      assert.equal((await get(url, { 'if-none-match': '"other"' })).statusCode, 200)
    }
  })

  for (const url of [
    '/playground/nothing.js',
    '/playground/format.test.js',
    '/playground/main.js.map',
    '/playground/..%2fapp.js',
    '/playground/%2e%2e%2f%2e%2e%2fpackage.json',
    '/playground/__proto__',
  ]) {
    test(`has no ${url}`, async (t) => {
      const get = await pageOf(t)
      const res = await get(url)
      assert.equal(res.statusCode, 404)
      assert.equal(res.json().code, 'NOT_FOUND')
    })
  }

  test('is not there when it is switched off', async (t) => {
    const get = await pageOf(t, { config: { ...LIMITS, playground: false } })
    for (const url of ['/', '/playground/main.js', '/playground/samples']) {
      assert.equal((await get(url)).statusCode, 404, url)
    }
  })

  test('parses nothing as HTML', () => {
    const folder = 'server/playground/page'
    for (const file of readdirSync(folder).filter((name) => name.endsWith('.ts'))) {
      const source = readFileSync(`${folder}/${file}`, 'utf8')
      assert.doesNotMatch(
        source,
        /innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(/,
        file,
      )
    }
  })
})

describe('sample users', () => {
  test('come with the demo model only', async (t) => {
    assert.deepEqual((await (await pageOf(t))('/playground/samples')).json(), { samples: [] })
    assert.equal((await (await pageOf(t))('/playground/samples/0007')).statusCode, 404)
    const loading = await pageOf(t, { ranker: () => undefined })
    assert.deepEqual((await loading('/playground/samples')).json(), { samples: [] })
  })

  test('are the 200 of the demo, each with its request, what was really shown, and the items', async (t) => {
    const get = await pageOf(t, { ranker: demoRanker })
    const { samples } = (await get('/playground/samples')).json()
    assert.equal(samples.length, 200)
    assert.deepEqual(samples[6], {
      name: '0007',
      user: '6374',
      events: 59,
      candidates: 100,
      shown: 2,
    })
    const { request, shown, catalogue } = (await get('/playground/samples/0007')).json()
    assert.deepEqual(request, JSON.parse(readFileSync('demo/kuairand/requests/0007.json', 'utf8')))
    assert.deepEqual(shown, { '1224': [], '7160': [] })
    assert.deepEqual(catalogue.features, ['author', 'tag', 'duration'])
    assert.deepEqual(catalogue.items['7160'], ['4182445', '37', 12_733])
    assert.ok(Object.keys(catalogue.items).length <= 159, 'only the items of this request')
  })

  for (const name of ['0000', '7', '..%2flabels', '0007.json', '__proto__']) {
    test(`have none called ${name}`, async (t) => {
      const get = await pageOf(t, { ranker: demoRanker })
      assert.equal((await get(`/playground/samples/${name}`)).statusCode, 404)
    })
  }
})
