import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import type { FastifyInstance } from 'fastify'
import type { Browser, BrowserContextOptions, Page } from 'playwright-core'
import { Registry } from 'prom-client'
import { loadRanker } from '../../falcon/load.js'
import type { Ranker } from '../../falcon/types.js'
import { contrast, launchChromium, noChromium, readText } from '../../test/chromium.js'
import { tempFolder } from '../../test/fixtures.js'
import { LIMITS } from '../../test/plain-ranker.js'
import { buildApp } from '../app.js'
import { exportBundle } from '../commands/export.js'

const DEMO = 'demo/kuairand'
const config = {
  ...LIMITS,
  bodyLimitBytes: 2 ** 20,
  maxHistoryEvents: 1000,
  maxCandidates: 5000,
}
describe('the playground in Chromium', { skip: noChromium }, () => {
  const folder = tempFolder({ after })
  let ranker: Ranker
  let app: FastifyInstance
  let browser: Browser
  let url: string

  before(async () => {
    exportBundle(DEMO, `${folder}/bundle`, 'fp32')
    ranker = await loadRanker({ bundle: `${folder}/bundle`, workers: 1, microBatchSize: 64 })
    app = await buildApp({ ranker: () => ranker, config, registry: new Registry() })
    url = await app.listen({ port: 0 })
    browser = await launchChromium()
  })
  after(async () => {
    await browser?.close()
    app?.server.closeAllConnections()
    await app?.close()
    await ranker?.close()
  })

  /** Opens the page and runs `steps` on it; whatever the console complains of fails the test. */
  async function on(options: BrowserContextOptions, steps: (page: Page) => Promise<void>) {
    const context = await browser.newContext(options)
    const page = await context.newPage()
    const complaints: string[] = []
    const elsewhere: string[] = []
    page.on('pageerror', (error) => complaints.push(error.message))
    page.on('console', (message) => {
      if (message.type() === 'error') complaints.push(message.text())
    })
    page.on('request', (request) => {
      if (!request.url().startsWith(`${url}/`)) elsewhere.push(request.url())
    })
    try {
      await page.goto(`${url}/`)
      await steps(page)
      assert.deepEqual(complaints, [])
      assert.deepEqual(elsewhere, [], 'the page talks to its own server only')
    } finally {
      await context.close()
    }
  }

  async function pick(page: Page, name: string): Promise<void> {
    const [user] = JSON.parse(await textOf(`${url}/playground/samples`)).samples.flatMap(
      (sample: { name: string; user: string }) => (sample.name === name ? [sample.user] : []),
    )
    await page.locator('#sample').selectOption(name)
    await page.locator('#user-facts dd').first().getByText(user, { exact: true }).waitFor()
  }

  async function rank(page: Page, run: number): Promise<void> {
    await page.getByRole('button', { name: 'Rank', exact: true }).click()
    await page
      .locator('#runs tbody tr')
      .nth(run - 1)
      .waitFor()
  }

  const state = (page: Page) => readText(page.locator('#kv-state'))
  const tokens = (page: Page) =>
    page.locator('#runs tbody tr').first().locator('td.number').allInnerTexts()

  test('ranks a sample user, finds the K/V again, and appends an added event', async () => {
    await on({ viewport: { width: 1280, height: 900 } }, async (page) => {
      await pick(page, '0007')
      assert.equal(await page.locator('.event').count(), 59)
      await rank(page, 1)
      assert.equal(await state(page), 'Miss')
      assert.equal(await page.locator('#ranked > li').count(), 10)
      assert.match(await readText(page.locator('#summary')), /^Ranked 100 candidates in /)
      // 100 candidates at b = 64: two micro-batches in the timeline.
      assert.equal(await page.locator('.stages .stage').count(), 5)
      assert.equal(await page.locator('.stages .batch').count(), 2)
      await rank(page, 2)
      assert.equal(await state(page), 'Hit')
      assert.deepEqual((await tokens(page)).slice(0, 2), ['124', '0'])

      await page
        .getByRole('button', { name: /^Add item .* to the history$/ })
        .first()
        .click()
      await page.getByLabel('like', { exact: true }).last().check()
      await page.getByRole('button', { name: 'Save' }).click()
      assert.equal(await page.locator('.event').count(), 60)
      assert.deepEqual(await page.locator('.event').first().locator('.tag').allInnerTexts(), [
        'click',
        'like',
      ])
      await rank(page, 3)
      assert.equal(await state(page), 'Append')
      assert.deepEqual((await tokens(page)).slice(0, 2), ['124', '2'])
    })
  })

  test('changes and removes events, and ranks by other weights', async () => {
    await on({}, async (page) => {
      await pick(page, '0009')
      const before = await page.locator('.event').count()
      await page
        .getByRole('button', { name: /^Edit item/ })
        .first()
        .click()
      await page.getByLabel('Item', { exact: true }).fill('2126')
      await page.getByLabel('what the user did is known').uncheck()
      await page.getByRole('button', { name: 'Save' }).click()
      assert.equal(await readText(page.locator('.event.fresh b')), '2126')
      assert.equal(await readText(page.locator('.event.fresh .tag')), 'not observed')
      await page
        .getByRole('button', { name: /^Remove item/ })
        .first()
        .click()
      assert.equal(await page.locator('.event').count(), before - 1)
      for (const [task, weight] of [
        ['click', '0'],
        ['long_view', '0'],
        ['like', '1'],
      ] as const) {
        await page.locator(`#weight-${task}`).fill(weight)
      }
      await page.getByLabel('Top k').fill('3')
      await rank(page, 1)
      const [score] = await page.locator('.score').allInnerTexts()
      const [like] = await page
        .locator('#ranked li')
        .first()
        .locator('.task')
        .last()
        .locator('b')
        .allInnerTexts()
      assert.equal(await page.locator('#ranked > li').count(), 3)
      assert.equal(
        Number(score).toPrecision(2),
        (Number.parseFloat(like ?? '') / 100).toPrecision(2),
      )
    })
  })

  test('shows an error with its code, message and path', async () => {
    const context = await browser.newContext()
    try {
      // Not through `on`: Chromium's console reports every 400 as an error.
      const page = await context.newPage()
      await page.goto(`${url}/`)
      await pick(page, '0007')
      await page.getByText('Request as JSON').click()
      const body = JSON.parse(await page.locator('#json').inputValue())
      body.history[3].time *= 1000
      await page.locator('#json').fill('{')
      await page.getByRole('button', { name: 'Apply' }).click()
      assert.match(await readText(page.locator('#json-error')), /JSON/)
      await page.locator('#json').fill(JSON.stringify(body))
      await page.getByRole('button', { name: 'Apply' }).click()
      await page.getByRole('button', { name: 'Rank', exact: true }).click()
      const problem = page.locator('#problem')
      await problem.waitFor()
      assert.equal(await problem.getAttribute('role'), 'alert')
      assert.match(
        await readText(problem),
        /^INVALID_REQUEST\n.*must be whole seconds.*\nat \/history\/3\/time$/,
      )
    } finally {
      await context.close()
    }
  })

  test('treats what it shows as text', async () => {
    await on({}, async (page) => {
      await pick(page, '0007')
      await page.getByText('Request as JSON').click()
      const body = JSON.parse(await page.locator('#json').inputValue())
      const evil = '<img src=x onerror="document.title=1">'
      body.user.id = evil
      body.candidates = [evil]
      body.history[0].item = evil
      await page.locator('#json').fill(JSON.stringify(body))
      await page.getByRole('button', { name: 'Apply' }).click()
      await rank(page, 1)
      assert.equal(await readText(page.locator('#ranked b').first()), evil)
      assert.equal(await page.locator('main img').count(), 0)
      assert.equal(await page.title(), 'Peregrine playground')
    })
  })

  test('measures cost against candidates and draws the line', async () => {
    await on({ viewport: { width: 800, height: 900 } }, async (page) => {
      await pick(page, '0007')
      await page.getByRole('tab', { name: 'Cost' }).click()
      await page.getByRole('button', { name: 'Measure' }).click()
      await page.locator('#cost-chart .fit').waitFor()
      await page.getByRole('button', { name: 'Stop' }).waitFor({ state: 'hidden' })
      assert.match(await readText(page.locator('#cost-status')), /per candidate, R² [\d.]+$/)
      assert.equal(await page.locator('#cost-chart .point').count(), 9)
      const sizes = await page.locator('#costs tbody td:first-child').allInnerTexts()
      assert.deepEqual([sizes[0], sizes.at(-1)], ['1', '4,096'])
    })
  })

  test('shows the metrics', async () => {
    await on({}, async (page) => {
      await page.getByRole('tab', { name: 'Metrics' }).click()
      await page.locator('.tile').first().waitFor()
      const titles = await page.locator('.tile h3').allInnerTexts()
      assert.ok(titles.includes('Workers') && titles.includes('K/V memory'), String(titles))
    })
  })

  for (const colorScheme of ['light', 'dark'] as const) {
    test(`has text of enough contrast in ${colorScheme}, and nothing to scroll sideways at 360 pixels`, async () => {
      const viewport = { width: 360, height: 740 }
      await on({ colorScheme, viewport, isMobile: true, hasTouch: true }, async (page) => {
        await pick(page, '0007')
        await rank(page, 1)
        for (const tab of ['Rank', 'Cost', 'Metrics']) {
          await page.getByRole('tab', { name: tab }).click()
          if (tab === 'Metrics') await page.locator('.tile').first().waitFor()
          assert.equal(await page.evaluate('document.documentElement.scrollWidth'), 360, tab)
          // An element wider than the page widens a phone's viewport instead of scrolling it.
          assert.equal(await page.evaluate('innerWidth'), 360, tab)
        }
        await page.getByRole('tab', { name: 'Rank' }).click()
        for (const selector of [
          'h2',
          '.hint',
          '.event .about',
          '.tag',
          '#rank',
          '.task .line',
          '#kv-state',
        ]) {
          const ratio = await contrast(page, selector)
          assert.ok(ratio >= 4.5, `${selector}: ${ratio.toFixed(2)}`)
        }
      })
    })
  }

  test('is used with the keyboard alone', async () => {
    await on({}, async (page) => {
      await pick(page, '0010')
      const focused = () => page.evaluate('document.activeElement.id')
      const tabTo = async (id: string) => {
        for (let i = 0; i < 200 && (await focused()) !== id; i++) await page.keyboard.press('Tab')
        assert.equal(await focused(), id)
      }
      await page.locator('#tab-rank').focus()
      await page.keyboard.press('ArrowRight')
      assert.equal(await focused(), 'tab-cost')
      await page.keyboard.press('Home')
      assert.equal(await focused(), 'tab-rank')
      await tabTo('add-event')
      await page.keyboard.press('Enter')
      assert.equal(await focused(), 'event-item')
      await page.keyboard.press('Escape')
      assert.equal(await focused(), 'add-event')
      const events = await page.locator('.event').count()
      await page.keyboard.press('Enter')
      await page.keyboard.type('2126')
      await page.keyboard.press('Enter')
      await page.locator('.event').nth(events).waitFor()
      await tabTo('rank')
      await page.keyboard.press('Enter')
      await page.locator('#runs tbody tr').first().waitFor()
      assert.equal(await page.locator('#ranked > li').count(), 10)
    })
  })
})

async function textOf(url: string): Promise<string> {
  return (await fetch(url, { headers: { connection: 'close' } })).text()
}
